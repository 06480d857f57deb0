"""Stateless operations on tensors: checks, backend, autograd.

State goes in and comes out: an operation updates a record in place and returns it, then carrying
the autograd graph if one is recorded.
"""

from .interp import select, time_since_older
from .ring import push, read
from .synapse import Ring, step

__all__ = ["Ring", "push", "read", "select", "step", "time_since_older"]
