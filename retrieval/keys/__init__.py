"""Search keys of segments."""
