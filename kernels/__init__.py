"""Triton kernels of tritonsyn: pointers, sizes, strides and tiles; no torch in here.

Modules of the same name belong together: ``read`` here, in ``tritonsyn.launch`` (grids and
allocation), ``tritonsyn.reference`` (plain PyTorch) and ``tritonsyn.ops`` (autograd).
"""
