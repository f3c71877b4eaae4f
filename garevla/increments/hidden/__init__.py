"""Increments with a hidden vector per pair."""
