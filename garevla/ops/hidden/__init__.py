"""Increments with a hidden layer per pair: one engine in tiles, kernels by backend."""
