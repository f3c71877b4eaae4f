"""Triton kernels: the pair operation, the directional diversity, the frame-level alignment.

Installed as ``garevla.kernels``. The backend's functions are in ``garevla.kernels.backend``: here
their names would be those of the modules that hold the kernels.
"""
