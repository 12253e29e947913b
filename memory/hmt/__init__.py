"""HMT's memory embeddings and the recurrence of segments (arXiv 2405.06067)."""
