"""The operations' readable definitions in plain PyTorch."""
