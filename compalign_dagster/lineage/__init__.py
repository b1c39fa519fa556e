"""The chain from a filtered dataset back to landed shards, checked from files alone."""
