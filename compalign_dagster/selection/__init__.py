"""The decision which pairs to keep, and the filtered dataset it makes."""
