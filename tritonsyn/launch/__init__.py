"""Grids, allocation and launch of the Triton kernels.

The same stems and signatures as ``tritonsyn.reference``; imported on first use.
"""
