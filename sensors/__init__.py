"""What starts work: arrivals, automation, takedowns, jobs."""
