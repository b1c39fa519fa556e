"""HTML pages and plots; the only place that escapes.

Pages take plain data (dictionaries, lists, bytes) and return one self-contained file. What does not
belong here: reading artifacts, computing figures.
"""
