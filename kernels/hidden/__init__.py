"""Increments with a hidden layer: a tile of pairs whose hidden vectors never leave the chip."""
