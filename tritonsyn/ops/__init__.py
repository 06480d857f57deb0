"""Stateless operations on tensors: checks, backend, autograd.

State goes in and comes out: an operation updates a record in place and returns it, then carrying
the autograd graph if one is recorded.
"""

from .decay import last_values, pack_spikes, scan, sequence_scan, unpack_spikes
from .interp import select, select_scan, time_since_older
from .project import (
    Taps,
    check_layer,
    choose,
    delayed_linear,
    project,
    project_record,
    project_spikes,
    taps,
)
from .registered import hold
from .ring import push, read, row_slots, write_rows
from .synapse import Ring, step

__all__ = [
    "Ring",
    "Taps",
    "check_layer",
    "choose",
    "delayed_linear",
    "hold",
    "last_values",
    "pack_spikes",
    "project",
    "project_record",
    "project_spikes",
    "push",
    "read",
    "row_slots",
    "scan",
    "select",
    "select_scan",
    "sequence_scan",
    "step",
    "taps",
    "time_since_older",
    "unpack_spikes",
    "write_rows",
]
