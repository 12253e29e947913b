"""Memory tiers as tensors: eviction policies, working memory, long-term records, the state on disk."""
