"""What starts work: arrivals, automation, jobs."""
