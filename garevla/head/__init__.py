"""GARE as the paper names it: similarity, losses, regularizers (NeurIPS 2025)."""
