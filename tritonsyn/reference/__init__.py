"""Plain PyTorch: what the kernels must compute, and what runs on a CPU.

The same stems and signatures as ``tritonsyn.launch``. Tensors are flat here: an observation is
``[B, N]``, a record ``[K, B, N]``, times ``[1 or B, N, D]``. State is updated in place.
"""
