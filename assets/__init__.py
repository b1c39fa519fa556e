"""One thin module per artifact: read configuration, call the core, write, report."""
