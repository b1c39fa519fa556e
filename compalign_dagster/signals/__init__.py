"""Optional signals about pairs, from small models inside wheels. An absent one is said, never guessed."""
