"""How sure a reward is, and whether that helps to choose what to label: see `__main__.py`."""
