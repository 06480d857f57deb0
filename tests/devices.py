"""Run by ``test_without_gpu.py`` in its own process: every operation on a GPU that is not there.

Its tensors are fake ones on an invented device. They have a shape, a dtype and a device, and no
values: whatever would make the host wait for a value raises, and so does whatever mixes them with
tensors of the CPU or copies from there. Launches are recorded, and have nothing that lies
elsewhere.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import smoke
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import tritonsyn
from tritonsyn import functional
from tritonsyn.launch.launcher import recording
from tritonsyn.modules import delay, projection
from tritonsyn.values import Links

_setup_privateuseone_for_python_backend("invented")
DEVICE = torch.device("invented", 0)
SIZES = (smoke.USUAL, smoke.Size(batch=1, delay=0.0))


class NoTransfers(TorchDispatchMode):
    """Raises where an operation copies from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = {a.device for a in (*args, result) if isinstance(a, torch.Tensor)}
        if len(there) > 1:
            raise RuntimeError(f"{func} has tensors on {there}")
        return result


def _uninitialized(name: str, values: torch.Tensor, init: Any) -> torch.nn.Parameter:
    """A parameter whose values nobody has checked."""
    return torch.nn.Parameter(values)


def _unread_links(mask: torch.Tensor) -> Links:
    """Those of a third of the connections, for which a constructor may wait."""
    places = mask.flatten().long()[::3]
    starts = (mask.new_zeros(size + 1, dtype=torch.int64) for size in mask.shape)
    return Links(places, places, places, next(starts), places, places, next(starts))


@contextmanager
def invented() -> Iterator[None]:
    """Takes kernels for the device, and keeps constructors, which may wait, from doing so."""
    patch = mock.patch.object
    with ExitStack() as stack:
        stack.enter_context(patch(tritonsyn.backend, "_triton_obstacle", lambda device_type: None))
        for cls, _ in smoke.KINDS.values():
            stack.enter_context(patch(cls, "_checked_constant", lambda self, name, value: value))
        stack.enter_context(patch(Links, "of", _unread_links))
        for module in (projection, delay):
            stack.enter_context(patch(module, "initialized", _uninitialized))
        yield


def parameter(value: float, *shape: int) -> torch.nn.Parameter:
    """A learned constant there."""
    return torch.nn.Parameter(torch.full(shape, value, device=DEVICE))


def mixed(backend: str) -> None:
    """Constants of several kinds: plain and learned numbers, tensors, parameters."""
    each = torch.full((37,), 6.0, device=DEVICE)
    pairs = ((1.0, parameter(9.0)), (each, 9.0), (parameter(1.0), each), (parameter(1.0, 37), 9.0))
    for charge, decay in pairs:
        synapse = tritonsyn.SingleExponentialCurrent(
            37, 1.0, spike_charge=charge, time_constant=decay, delay=5.0, batch_size=3,
            current_overbound=0.5, backend=backend, device=DEVICE,
        )  # fmt: skip
        x = torch.ones(3, 37, device=DEVICE, requires_grad=True)
        y = synapse(x > 0) + synapse(x) + synapse.current_at(torch.ones_like(x))
        y = y + synapse.scan(x.expand(4, 3, 37)).sum(0)
        y.square().sum().backward()
        synapse.detach_state()
        synapse.clear()


def capturable(backend: str) -> None:
    """The pointer on the device; half precision besides."""
    for dtype in (torch.float32, torch.bfloat16):
        synapse = tritonsyn.DoubleExponentialCurrent(
            37, 1.0, spike_charge=1.0, tc_decay=9.0, tc_rise=3.0, delay=5.0, batch_size=3,
            capturable=True, backend=backend, device=DEVICE, dtype=dtype,
        )  # fmt: skip
        x = torch.ones(3, 37, device=DEVICE, requires_grad=True)
        y = synapse(x) + synapse.scan(x.expand(2, 3, 37)).sum(0)
        times = torch.ones(1, 37, dtype=dtype, device=DEVICE, requires_grad=True)
        (y + synapse.current_at(times)).sum().backward()


def recurrent(backend: str) -> None:
    """Steps of a layer that hears itself, as a graph would take them and as training does."""
    for cls, physics in smoke.KINDS.values():
        learned = (physics[0], parameter(physics[1]), *physics[2:])
        layer = tritonsyn.DelayedLinear(
            37, 37, 1.0, synapse=cls.partialconstructor(*learned), delay=5.0, bias=True,
            batch_size=3, capturable=True, backend=backend, device=DEVICE,
        )  # fmt: skip
        z = torch.ones(3, 37, device=DEVICE)
        with torch.no_grad():
            z.copy_(torch.sigmoid(layer(z)))
        for _ in range(2):
            z = torch.sigmoid(layer(z))
        z.sum().backward()


def stateless(backend: str) -> None:
    """The functional forms, with numbers where they take tensors."""
    x = torch.ones(300, 3, 37, device=DEVICE, requires_grad=True)
    y, final = functional.exp_scan(x, 0.9, backend=backend)
    z, _ = functional.double_exp_scan(x, parameter(0.9, 37), 0.5, 2.0, backend=backend)
    again, _ = functional.exp_scan(y, 0.5, 1.0, final, backend=backend)
    bits = functional.pack_spikes(x > 0, backend=backend)
    packed, _ = functional.exp_scan(bits, parameter(0.9, 37), backend=backend)
    (again.sum() + z.sum() + packed.sum()).backward()


def delayed(backend: str) -> None:
    """A signal that is delayed, in sequences and in steps."""
    for interp in ("previous", "linear", "gaussian"):
        for delay_shape in (None, 1):
            layer = tritonsyn.Delay(
                37, 1.0, delay=5.0, interp=interp, delay_shape=delay_shape, batch_size=3,
                backend=backend, device=DEVICE,
            )  # fmt: skip
            x = torch.ones(9, 3, 37, device=DEVICE, requires_grad=True)
            (layer(x).sum() + layer(x[0]).sum()).backward()
            layer.detach_state()


def sequences(backend: str) -> None:
    """Times of each step, samples of several lengths, and state that goes from one to another."""
    x = torch.ones(9, 3, 37, device=DEVICE, requires_grad=True)
    lengths = torch.ones(3, dtype=torch.int64, device=DEVICE)
    for cls, physics in smoke.KINDS.values():
        constructor = cls.partialconstructor(physics[0], parameter(physics[1]), *physics[2:])
        synapse = constructor((37,), 1.0, 5.0, 3, backend=backend, device=DEVICE)
        for rows in (1, 3):
            times = torch.ones(9, rows, 37, device=DEVICE, requires_grad=True)
            y, read = synapse.scan_at(x, times, per_step=True, lengths=lengths)
            (y.sum() + read.sum() + synapse.current_at(2.5).sum()).backward()
            synapse.detach_state()
        synapse.load_state(synapse.state())
        synapse.scan(x, lengths).sum().backward()
        layer = tritonsyn.DelayedLinear(
            37, 5, 1.0, synapse=constructor, delay=5.0, batch_size=3, backend=backend, device=DEVICE
        )
        layer.scan(x, lengths).sum().backward()


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "mixed constants": mixed,
    "capturable": capturable,
    "recurrent, capturable": recurrent,
    "stateless": stateless,
    "delayed": delayed,
    "sequences": sequences,
}


def waits(backend: str, name: str) -> bool:
    """Whether an operation has to know values without kernels: places of spikes, a pointer."""
    return backend == "reference" and name.endswith(("events", "capturable"))


def main() -> None:
    launched = set()
    with invented(), FakeTensorMode():
        for size in SIZES:
            for name, operation in (*smoke.operations(DEVICE, size), *OPERATIONS.items()):
                for backend in ("triton", "reference"):
                    if not waits(backend, name):
                        print(size, backend, name, flush=True)
                        with NoTransfers(), recording() as launches:
                            operation(backend)
                        for made in launches:
                            tensors = [a for a in made.arguments if isinstance(a, torch.Tensor)]
                            assert all(a.device == DEVICE for a in tensors), made
                            launched.add(made.name)
    print("launched:", *sorted(launched))


if __name__ == "__main__":
    main()
    # Autograd has a thread for the device, which may abort the process while the interpreter ends.
    sys.stdout.flush()
    os._exit(0)
