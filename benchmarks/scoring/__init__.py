"""How fast pairs are scored, beside other programs on the same machine: `python -m benchmarks.scoring`."""
