"""Stateless operations on tensors: checks, backend, autograd.

State goes in and comes out: an operation updates a record in place and returns it, then carrying
the autograd graph if one is recorded.
"""

from .decay import pack_spikes, scan, sequence_scan, unpack_spikes
from .interp import select, select_scan, time_since_older
from .registered import hold
from .ring import push, read, row_slots, write_rows
from .synapse import Ring, step

__all__ = [
    "Ring",
    "hold",
    "pack_spikes",
    "push",
    "read",
    "row_slots",
    "scan",
    "select",
    "select_scan",
    "sequence_scan",
    "step",
    "time_since_older",
    "unpack_spikes",
    "write_rows",
]
