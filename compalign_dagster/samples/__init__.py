"""The sample crawl and the photo crawl: inputs to try the pipeline on, not evidence about the web."""
