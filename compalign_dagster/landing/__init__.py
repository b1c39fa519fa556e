"""Landing a crawl from a list of URLs, fetched by img2dataset in an environment of its own."""
