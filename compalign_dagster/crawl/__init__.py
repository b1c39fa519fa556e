"""Crawl shards and their index: members in, pairs and quarantine out."""
