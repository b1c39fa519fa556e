"""The reward model: networks, training, model folders, the promotion gate."""
