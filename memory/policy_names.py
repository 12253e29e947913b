"""Names of the library's eviction policies, for help that does not wait for torch."""

POLICY_NAMES = ("full_cache", "window", "segment_local", "attention", "h2o", "l2_norm", "namm", "linear")
"""Those of `hiermem.memory.policies.POLICIES`, in its order."""
