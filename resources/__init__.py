"""Configured access to the outside: stores, devices."""
