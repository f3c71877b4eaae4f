"""DiscoVLA's frame-level alignment and distillation (CVPR 2025)."""
