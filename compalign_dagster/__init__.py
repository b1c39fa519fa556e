"""Curate image-text pairs with a reward model that learned from people.

The packages in here are the method and know no Dagster; `definitions` and `cli` assemble it.
Importing this package imports nothing else.
"""
