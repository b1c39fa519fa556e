"""What a crawl of a given size costs: measured on a small instance, extrapolated as stated arithmetic."""
