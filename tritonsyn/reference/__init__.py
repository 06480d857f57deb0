"""Plain PyTorch: what the kernels must compute, and what runs on a CPU.

The same modules, functions and signatures as ``tritonsyn.launch``; the contract of both stands
here, in the docstrings. Tensors are flat: an observation is
``[B, N]``, a record ``[K, B, N]``, times ``[1 or B, N, D]``. State is updated in place.
"""
