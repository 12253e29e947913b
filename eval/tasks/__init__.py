"""Tasks: each one short file with its examples, prompt and metric."""
