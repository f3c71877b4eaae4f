"""DiscoVLA's frame-level alignment in Triton."""
