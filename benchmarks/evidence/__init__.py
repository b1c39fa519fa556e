"""How far the reward agrees with people on real judgements: see `__main__.py`."""
