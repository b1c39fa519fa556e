"""How fast and in how much memory shards are read: `python -m benchmarks.intake`."""
