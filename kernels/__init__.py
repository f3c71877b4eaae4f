"""Triton kernels: pairs, hidden layers, directional diversity, frame-level alignment.

Installed as ``garevla.kernels``. The backend's functions are in ``garevla.kernels.backend``: here
their names would be those of the modules that hold the kernels.
"""
