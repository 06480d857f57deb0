"""Grids, allocation and launch of the Triton kernels.

The same modules, functions and signatures as ``tritonsyn.reference``, whose docstrings are the
contract of both. Imported on first use.
"""
