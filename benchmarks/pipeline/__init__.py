"""What the pipeline's own report said, per profile: `python -m benchmarks.pipeline HOME ...`."""
