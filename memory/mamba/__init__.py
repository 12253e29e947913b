"""Mamba heads in place of attention heads (RecurFormer, arXiv 2410.12850)."""
