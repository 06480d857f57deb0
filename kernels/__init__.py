"""Triton kernels of tritonsyn: pointers, sizes, strides and tiles; no torch in here.

The stems name the same thing in four places: ``kernels`` (this package), ``tritonsyn.reference``
(plain PyTorch), ``tritonsyn.launch`` (grids and allocation) and ``tritonsyn.ops`` (autograd).
"""
