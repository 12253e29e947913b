"""The KV cache: layers, head groups, position frames, eviction."""
