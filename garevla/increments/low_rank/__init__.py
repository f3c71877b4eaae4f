"""Increments that are combinations of a few vectors of their video."""
