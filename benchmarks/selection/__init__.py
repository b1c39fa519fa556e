"""How fast the selection is, and in how much memory, from a million to a billion pairs."""
