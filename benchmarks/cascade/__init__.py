"""Whether a cheap scorer in front of the reward pays: decisions that change, passes that are saved, time they cost."""
