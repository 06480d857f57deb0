"""Stateless operations on checked arguments: the choice of the backend, and autograd.

State goes in and comes out: an operation updates a record in place and returns it, with the
autograd graph if one is recorded.
"""

from ..values import Ring
from .common import Home, hold
from .constants import coefficients
from .conv import SpreadWindows, Windows, convolve_rows, project_windows, project_windows_shared
from .delayed import End, Past, Run, choose, project_sequence
from .filter import filtered, gaussian_span, gaussian_weights
from .lengths import input_until, last_rows, silenced
from .projection import project, project_step
from .read import SelectPlan, replaced, select, select_again, select_scan, time_since_older
from .record import PushPlan, blank, push, push_again, read, row_slots, write_rows
from .replay import State, replayed
from .ring import extend_ring
from .scan import ScanPlan, pack_spikes, scan, scan_ring, scan_ring_again
from .shards import Operand, any_distributed, broadcast_axes, on_shards
from .shared import Shared, product, project_shared, shared
from .spread import Spread, SpreadSettings
from .step import StepPlan, step, step_again
from .tape import Tape
from .taps import Taps, taps

__all__ = [
    "End",
    "Home",
    "Operand",
    "Past",
    "PushPlan",
    "Ring",
    "Run",
    "ScanPlan",
    "SelectPlan",
    "Shared",
    "Spread",
    "SpreadSettings",
    "SpreadWindows",
    "State",
    "StepPlan",
    "Tape",
    "Taps",
    "Windows",
    "any_distributed",
    "blank",
    "broadcast_axes",
    "choose",
    "coefficients",
    "convolve_rows",
    "extend_ring",
    "filtered",
    "gaussian_span",
    "gaussian_weights",
    "hold",
    "input_until",
    "last_rows",
    "on_shards",
    "pack_spikes",
    "product",
    "project",
    "project_sequence",
    "project_shared",
    "project_step",
    "project_windows",
    "project_windows_shared",
    "push",
    "push_again",
    "read",
    "replaced",
    "replayed",
    "row_slots",
    "scan",
    "scan_ring",
    "scan_ring_again",
    "select",
    "select_again",
    "select_scan",
    "shared",
    "silenced",
    "step",
    "step_again",
    "taps",
    "time_since_older",
    "write_rows",
]
