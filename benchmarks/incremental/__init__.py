"""What is read and scored again after each kind of change. `python -m benchmarks.incremental`."""
