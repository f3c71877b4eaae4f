"""The pair operation in Triton."""
