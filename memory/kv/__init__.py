"""Keys and values of segments, kept for ever: the KV tier of the long-term memory."""
