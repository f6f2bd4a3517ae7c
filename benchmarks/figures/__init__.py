"""Figures from the rows of results: of a machine or a study."""
