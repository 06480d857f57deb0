"""The modules that the tests of wrappers wrap, and what these tests do in other processes.

``python processes.py FOLDER RANK`` is one of two processes that work together. It does every job
with each kind of module, and saves in the folder what it found, or the traceback.
"""

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from synapses import PHYSICS, make, snapshot, spikes, uniform
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tritonsyn

KINDS = (*PHYSICS, "linear", "delay")
Found = dict[str, Any]


def build(kind: str, batch_size: int = 2, **options: Any) -> Any:
    """A module with three inputs, delays up to 3 ms and parameters, the same at each call."""
    options = {"delay": 3.0, "batch_size": batch_size, **options}
    if kind in PHYSICS:
        each = torch.tensor([1.0, 1.1, 1.2], dtype=options.get("dtype"))
        learned = {name: nn.Parameter(value * each) for name, value in PHYSICS[kind].items()}
        return make(kind, **{**learned, **options})
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    if kind == "delay":
        layer: nn.Module = tritonsyn.Delay(3, 1.0, **options)
    else:
        layer = tritonsyn.DelayedLinear(3, 2, 1.0, synapse=physics, bias=True, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(uniform(*parameter.shape, seed=seed, low=0.2, high=2.5))
    return layer


def drive(steps: int = 8, batch: int = 2, seed: int = 0) -> Tensor:
    """Spikes for that many steps and samples, as numbers."""
    return spikes(steps, batch, 3, seed=seed).float()


def outputs(module: Any, x: Tensor) -> Tensor:
    """Of a few steps, and of the rest as one sequence."""
    few = len(x) // 2
    return torch.cat([torch.stack([module(v) for v in x[:few]]), module(x[few:])])


def train(run: Any, module: nn.Module, x: Tensor, scale: float = 1.0) -> Found:
    """Two updates, each after half of the sequence; the state goes on from one to the other."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    found: Found = {"y": [], "gradients": []}
    for part in x.chunk(2):
        optimizer.zero_grad()
        y = outputs(run, part)
        (scale * y.square().mean((0, 2)).sum()).backward()
        found["y"].append(y.detach())
        found["gradients"].append({n: whole(p.grad) for n, p in module.named_parameters()})
        optimizer.step()
        module.detach_state()
    found["parameters"] = {n: whole(p) for n, p in module.named_parameters()}
    found["records"] = records(module)
    return found


def whole(tensor: Any) -> Tensor:
    """A copy of the tensor, put together where it is distributed."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def records(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what the records hold."""
    known = {n: m for n, m in module.named_modules() if isinstance(m, tritonsyn.RecordTensor)}
    return {name: record.value.detach().clone() for name, record in known.items()}


# -- sent to a process ----------------------------------------------------------------------------


def stepped(module: Any, x: Tensor) -> tuple[Any, Tensor]:
    """The module after these inputs, and its outputs."""
    with torch.no_grad():
        return module, outputs(module, x)


def filled(module: nn.Module, value: float) -> None:
    """Fills every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


# -- two processes that work together -------------------------------------------------------------


def own(x: Tensor, rank: int) -> Tensor:
    """The samples of this process."""
    return x.chunk(2, 1)[rank]


def replicated(kind: str, rank: int, folder: Path) -> Found:
    module = build(kind, dtype=torch.float64)
    return train(DistributedDataParallel(module), module, own(drive(batch=4), rank))


def captured(kind: str, rank: int, folder: Path) -> Found:
    """With records that are buffers, which are not to be copied from one process to the other."""
    module = build(kind, dtype=torch.float64, capturable=True)
    wrapped = DistributedDataParallel(module, broadcast_buffers=False)
    return train(wrapped, module, own(drive(batch=4), rank))


def sharded(kind: str, rank: int, folder: Path) -> Found:
    """A sequence by name, which nothing was told of."""
    module = build(kind, dtype=torch.float64)
    fully_shard(module)
    return train(
        lambda x: module.scan(x) if x.ndim == 3 else module(x), module, own(drive(batch=4), rank)
    )


def saved(kind: str, rank: int, folder: Path) -> Found:
    """Parameters, and constants that are tensors, saved by both and loaded by both."""

    def new(charge: float) -> Any:
        fixed = {"spike_charge": torch.full((3,), charge)} if kind in PHYSICS else {}
        return build(kind, **fixed)

    module, other, place = new(7.0), new(1.0), folder / kind
    outputs(module, own(drive(batch=4), rank))
    dcp.save(get_model_state_dict(module), checkpoint_id=place)
    filled(other, 1.0)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=place)
    set_model_state_dict(other, state)
    return snapshot(other)


JOBS: dict[str, Callable[[str, int, Path], Found]] = {
    "replicated": replicated,
    "captured": captured,
    "sharded": sharded,
    "saved": saved,
}


def attempt(job: str, kind: str, rank: int, folder: Path) -> Found | str:
    try:
        return JOBS[job](kind, rank, folder)
    except Exception:
        return traceback.format_exc()


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    found = {(job, kind): attempt(job, kind, rank, folder) for job in JOBS for kind in KINDS}
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()


if __name__ == "__main__":
    main()
    # The threads of a process group may abort the process while the interpreter ends.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
