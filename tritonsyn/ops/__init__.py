"""Stateless operations on tensors: checks, backend, autograd.

State goes in and comes out: an operation updates a record in place and returns it, then carrying
the autograd graph if one is recorded.
"""

from .common import hold
from .projection import (
    Taps,
    check_layer,
    choose,
    delayed_linear,
    project,
    project_record,
    project_spikes,
    taps,
)
from .read import select, select_scan, time_since_older
from .record import push, read, row_slots, write_rows
from .scan import last_values, pack_spikes, scan, sequence_scan, unpack_spikes
from .step import Ring, step

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
