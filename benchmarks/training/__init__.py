"""How fast reward models train: steps, frozen features, cross-validation, memory."""
