"""HMT's memory embeddings and what segments hand on (arXiv 2405.06067)."""
