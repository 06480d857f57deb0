"""The cheapest way to compute a delayed projection, estimated from operation counts."""

from typing import NamedTuple

import torch

_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


class Work(NamedTuple):
    """The size of a delayed projection."""

    taps: int
    """Steps times batch times connections."""
    past: int
    """Taps that deliver what was emitted before this call; ``events`` adds them densely."""
    slots: int
    """Whole steps that a delay can be, K."""
    arrivals: int | None
    """Spikes times outputs; None if that is unknown or ``events`` cannot be used."""
    finite: bool = True
    """Whether the input is known to be finite: ``gemm`` spreads other values to all outputs."""


# Nanoseconds of one multiplication and addition, measured in float32: on two cores of a CPU, and on
# an H100 by the projections of docs/performance.md.
_COSTS = {
    "cpu": {"shift": 1.4, "gemm": 0.027, "events": 8.0},
    "ieee": {"shift": 4.0e-4, "gemm": 3.1e-4, "events": 1.3e-2},
    "tf32x3": {"shift": 4.0e-4, "gemm": 5.0e-5, "events": 1.3e-2},
    "tf32": {"shift": 4.0e-4, "gemm": 2.7e-5, "events": 1.3e-2},
}


def precision() -> str:
    """Precision of float32 products: what ``torch.get_float32_matmul_precision`` says."""
    return _PRECISIONS[torch.get_float32_matmul_precision()]


# What torch.compiler.assume_constant_result sets, which would import all of torch._dynamo now.
precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cheapest(work: Work, device: torch.device) -> str:
    """``"shift"``, ``"gemm"`` or ``"events"``."""
    cost = _COSTS["cpu" if device.type == "cpu" else precision()]
    tap = {"shift": cost["shift"]}
    if work.finite or device.type == "cpu":  # where ``gemm`` checks its own result
        tap["gemm"] = work.slots * cost["gemm"]
    if work.arrivals is None:
        return min(tap, key=tap.__getitem__)
    costs = {strategy: work.taps * each for strategy, each in tap.items()}
    costs["events"] = work.arrivals * cost["events"] + work.past * min(tap.values())
    return min(costs, key=costs.__getitem__)
