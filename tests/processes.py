"""The modules that the tests of wrappers wrap, and what tests do in processes that work together.

``python processes.py FOLDER RANK SIZE MODULE`` is one of SIZE such processes, which
:func:`together` starts. It does each of the jobs of a module of the tests, and saves in the folder
what it found, or the traceback.
"""

import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from synapses import PHYSICS, make, snapshot, spikes, uniform
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
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


def full(tensor: Any) -> Tensor:
    """The tensor, put together where it is distributed."""
    put_together: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return put_together


def whole(tensor: Any) -> Tensor:
    """A copy of all of it, without its graph."""
    return full(tensor).detach().clone()


def records(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what the records hold."""
    known = {n: m for n, m in module.named_modules() if isinstance(m, tritonsyn.RecordTensor)}
    return {name: record.value.detach().clone() for name, record in known.items()}


def mesh() -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def message(call: Callable[[], Any]) -> str:
    """The error that a call raises on every process, before anything travels."""
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


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


# -- processes that work together ------------------------------------------------------------------


def together(size: int, module: str, folder: str | Path) -> list[Any]:
    """What each of so many processes found that did the jobs of a module together.

    What each of them wrote, if one did not get to its end.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(size), module],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        return errors
    return [torch.load(Path(folder, f"{rank} of {size}.pt")) for rank in range(size)]


def of_job(found: list[Any], job: Any) -> list[Found]:
    """What each process found in this job."""
    for each in found:
        assert not isinstance(each, str), each
        assert not isinstance(each[job], str), each[job]
    return [each[job] for each in found]


def own(x: Tensor) -> Tensor:
    """The samples of this process."""
    return x.chunk(distributed.get_world_size(), 1)[distributed.get_rank()]


def replicated(kind: str) -> Found:
    module = build(kind, dtype=torch.float64)
    return train(DistributedDataParallel(module), module, own(drive(batch=4)))


def captured(kind: str) -> Found:
    """With records that are buffers, which are not to be copied from one process to the other."""
    module = build(kind, dtype=torch.float64, capturable=True)
    wrapped = DistributedDataParallel(module, broadcast_buffers=False)
    return train(wrapped, module, own(drive(batch=4)))


def sharded(kind: str) -> Found:
    """A sequence by name, which nothing was told of."""
    module = build(kind, dtype=torch.float64)
    fully_shard(module)
    return train(
        lambda x: module.scan(x) if x.ndim == 3 else module(x), module, own(drive(batch=4))
    )


def saved(kind: str, folder: Path) -> Found:
    """Parameters, and constants that are tensors, saved by both and loaded by both."""

    def new(charge: float) -> Any:
        fixed = {"spike_charge": torch.full((3,), charge)} if kind in PHYSICS else {}
        return build(kind, **fixed)

    module, other, place = new(7.0), new(1.0), folder / kind
    outputs(module, own(drive(batch=4)))
    dcp.save(get_model_state_dict(module), checkpoint_id=place)
    filled(other, 1.0)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=place)
    set_model_state_dict(other, state)
    return snapshot(other)


def jobs(folder: Path) -> dict[Any, Callable[[], Found]]:
    """What the tests of wrappers have two processes do."""
    alone = {"replicated": replicated, "captured": captured, "sharded": sharded}
    made: dict[Any, Callable[[], Found]] = {
        (name, kind): partial(job, kind) for name, job in alone.items() for kind in KINDS
    }
    return made | {("saved", kind): partial(saved, kind, folder) for kind in KINDS}


def attempt(job: Callable[[], Found]) -> Found | str:
    try:
        return job()
    except Exception:
        return traceback.format_exc()


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet {size}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    todo = importlib.import_module(sys.argv[4]).jobs(folder)
    torch.save({name: attempt(job) for name, job in todo.items()}, folder / f"{rank} of {size}.pt")
    distributed.barrier()


if __name__ == "__main__":
    main()
    # The threads of a process group may abort the process while the interpreter ends.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
