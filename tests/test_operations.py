"""How many kernels a call launches, and how many operations of PyTorch it needs besides."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tritonsyn import DelayedLinear, SingleExponentialCurrent
from tritonsyn.launch.config import LaunchConfig, override_config
from tritonsyn.launch.launcher import Launch, recording

STEPS, BATCH, SYNAPSES = 6, 2, 5
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Operations(TorchDispatchMode):
    """Counts what PyTorch runs, but for views, ``detach`` and memory that nothing is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[tuple[list[Launch], Counter[str]]]:
    """The launches within the block, which are not run, and the operations besides."""
    with recording() as launches, Operations() as operations:
        yield launches, operations.counts


def synapse(device: torch.device, learned: bool = False, **options: Any) -> Any:
    tau = torch.nn.Parameter(torch.tensor(5.0, device=device)) if learned else 5.0
    return SingleExponentialCurrent(
        SYNAPSES, 1.0, spike_charge=1.0, time_constant=tau, delay=3.0, batch_size=BATCH,
        device=device, backend="triton", **options,
    )  # fmt: skip


def layer(device: torch.device, strategy: str = "shift", learned: bool = False) -> Any:
    tau = torch.nn.Parameter(torch.tensor(5.0, device=device)) if learned else 5.0
    made = SingleExponentialCurrent.partialconstructor(1.0, tau)
    return DelayedLinear(
        SYNAPSES, 4, 1.0, synapse=made, delay=3.0, batch_size=BATCH, strategy=strategy,
        device=device, backend="triton",
    )  # fmt: skip


class Call(NamedTuple):
    """A call of a module from rest, and what it may launch and need besides."""

    kind: str
    launches: int
    others: int
    options: dict[str, Any] = {}  # noqa: RUF012 (no one changes it)
    steps: bool = False  # of one step, not of a sequence
    backward: bool = False
    chunks: int = 1


CALLS = {
    "step": Call("synapse", 1, 0, steps=True),
    "step, learned": Call("synapse", 6, 3, {"learned": True}, steps=True, backward=True),
    "scan": Call("synapse", 1, 0),
    "scan, learned": Call("synapse", 4, 1, {"learned": True}, backward=True),
    "scan in parts": Call("synapse", 8, 2, {"learned": True}, backward=True, chunks=3),
    "scan, capturable": Call("synapse", 1, 0, {"capturable": True}),
    "layer, step": Call("layer", 3, 0, steps=True),
    "layer, scan": Call("layer", 5, 0),
    "layer, trained": Call("layer", 9, 0, backward=True),
    "layer, all learned": Call("layer", 14, 2, {"learned": True}, backward=True),
    "layer, by bits": Call("layer", 9, 0, {"strategy": "bits"}, backward=True),
    "layer, by events": Call("layer", 10, 0, {"strategy": "events"}, backward=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_need_no_more_kernels_and_operations_than_these(name, device):
    """Each operation besides is a launch of PyTorch's own, of 2 us or more on a GPU."""
    call = CALLS[name]
    module = {"synapse": synapse, "layer": layer}[call.kind](device, **call.options)
    x = torch.rand(STEPS, BATCH, SYNAPSES, device=device) < 0.5
    x = x[0] if call.steps else x
    config = LaunchConfig(32, num_warps=1, UNROLL=2, chunks=call.chunks)
    with override_config(config, "exp_scan_kernel") if call.chunks > 1 else nullcontext():
        with recording():  # once before, so that nothing is left to set up
            dy = torch.ones_like(module(x))
        module.clear()
        with torch.set_grad_enabled(call.backward), counted() as (launches, others):
            y = module(x)
            if call.backward:
                torch.autograd.grad(y, list(module.parameters()), dy)
    found = [launch.name for launch in launches]
    assert len(found) <= call.launches, found
    assert others.total() <= call.others, others


@pytest.mark.parametrize(("train", "launches", "others"), [(False, 2, 1), (True, 3, 6)])
def test_a_step_on_a_tape_needs_no_more_than_this(train, launches, others, device):
    """Whatever a run has to do at its ends; the input is the sum of the last output and a row."""
    module, x = layer(device), torch.rand(4, BATCH, SYNAPSES, device=device)
    found = []
    for steps in (2, 4):
        module.clear()
        with torch.set_grad_enabled(train), counted() as (made, rest):
            y = x.new_zeros(BATCH, 4)
            with module.unrolled(4):
                for row in x[:steps]:
                    y = module(row + y.sum())
            if train:
                torch.autograd.grad(y.sum(), list(module.parameters()))
        found.append((len(made), rest.total()))
    own = 2 + train  # the sum and the addition, and the derivative of the sum
    assert (found[1][0] - found[0][0]) / 2 <= launches
    assert (found[1][1] - found[0][1]) / 2 - own <= others


def test_what_is_counted(device):
    """Neither views nor memory without values, but all that computes."""
    with counted() as (_, others):
        x = torch.empty(3, 4, device=device).t().detach()[1:].view(3, 3)
        torch.zeros_like(x).add_(1.0).sum()
    assert others == {"zeros_like": 1, "add_": 1, "sum": 1}
