"""Human judgements: read, validated, split by image."""
