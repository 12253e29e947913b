"""Finding and keeping records: search keys, recall stores, files on disk."""
