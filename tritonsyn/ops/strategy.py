"""The cheapest way to compute a delayed projection, estimated from operation counts."""

from typing import NamedTuple

import torch

_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


class Work(NamedTuple):
    """The size of a delayed projection."""

    taps: int
    """Steps times batch times all connections that there could be."""
    past: int
    """Taps that deliver what was emitted before this call, which ``bits`` and ``events`` add in
    another way."""
    slots: int
    """Whole steps that a delay can be, K."""
    arrivals: int | None
    """Spikes times outputs; None if that is unknown or ``events`` cannot be used."""
    spikes: bool = False
    """Whether ``bits`` can be used: spikes, and one time constant."""
    finite: bool = True
    """Whether the input is known to be finite: ``gemm`` spreads other values to all outputs."""
    parts: int = 0
    """In how many sums ``shift`` is made, of a convolution."""
    density: float = 1.0
    """The part of the connections that there are; ``shift`` sums no others."""


# Nanoseconds of one multiplication and addition in float32. Measured on two cores of a CPU, and on
# an H100 (docs/performance.md): shift and events; bits by a prototype that took 2.5 instructions
# where there are 1.9 now; gemm in ieee, when it loaded its connections anew for each delay.
# Calculated: gemm on tensor cores. Convolutions were measured on the CPU only, and count as gemm
# elsewhere.
_GPU = {"shift": 4.0e-4, "bits": 2.6e-4, "events": 1.3e-2}
_COSTS = {
    "cpu": {"shift": 0.16, "gemm": 0.027, "convolution": 0.009, "events": 6.0},
    "ieee": {**_GPU, "gemm": 3.1e-4, "convolution": 3.1e-4},
    "tf32x3": {**_GPU, "gemm": 5.0e-5, "convolution": 5.0e-5},
    "tf32": {**_GPU, "gemm": 2.7e-5, "convolution": 2.7e-5},
}

_PART = 5e4  # of a sum of shifted rows, whatever its size is; on a GPU calculated


def precision() -> str:
    """Precision of float32 products: what ``torch.get_float32_matmul_precision`` says."""
    return _PRECISIONS[torch.get_float32_matmul_precision()]


# What torch.compiler.assume_constant_result sets, which would import all of torch._dynamo now.
precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cheapest(work: Work, device: torch.device) -> str:
    """``"shift"``, ``"gemm"``, ``"bits"`` or ``"events"``."""
    cost = _COSTS["cpu" if device.type == "cpu" else precision()]
    tap = {"shift": cost["shift"] * work.density}
    if work.parts:
        tap["shift"] += work.parts * _PART / work.taps
    if work.finite or device.type == "cpu":  # where ``gemm`` checks its own result
        tap["gemm"] = work.slots * cost["convolution" if work.parts else "gemm"]
    best = min(tap, key=tap.__getitem__)
    least = tap[best]
    # Sizes of a traced sequence are symbols: at rest no comparison depends on them.
    past = work.past / work.taps * least if work.past else 0.0
    if work.spikes and "bits" in cost and cost["bits"] + past < least:  # a CPU has no such bits
        best, least = "bits", cost["bits"] + past
    if work.arrivals is None:
        return best
    return "events" if work.arrivals * cost["events"] < work.taps * (least - past) else best
