"""Kernel launches as values, with the tile counts, dtypes and constants that they share."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton import knobs
from triton.runtime import driver

from ..backend import interpreting, without_plans
from ..values import Dynamics, ReadRule, Slot
from .config import LaunchConfig, Work, config_for

Argument = Tensor | int | float | None
Grid = tuple[int, ...]


class Launch(NamedTuple):
    """A kernel with all of its arguments; it can be run, or inspected."""

    kernel: Any
    grid: Grid
    arguments: tuple[Argument, ...]  # of run time, in order
    constants: dict[str, Any]  # of compile time, and Triton's options, without those of ``config``
    work: Work
    dtype: torch.dtype  # with the work, what the configuration is looked up by
    config: LaunchConfig

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return str(self.kernel.fn.__name__)

    @property
    def stem(self) -> str:
        """The name of the kernel's module, which launch, reference and ops share."""
        return str(self.kernel.fn.__module__.rpartition(".")[2])

    @property
    def options(self) -> dict[str, Any]:
        """All that Triton takes by name."""
        return {**self.constants, **settings(self.kernel.fn, self.config)}

    def run(self) -> None:
        """Runs the kernel on the GPU of its tensors."""
        with _current(_device(self.arguments)):
            self.kernel[self.grid](*self.arguments, **self.options)


_recorded: list[Launch] | None = None
_running = True


@contextmanager
def recording(run: bool = False) -> Iterator[list[Launch]]:
    """Collects launches in a list until the block ends; they run only if ``run`` is true.

    For the workbench and for tests. It holds for all threads of the process.
    """
    global _recorded, _running
    previous = _recorded, _running
    _recorded, _running = [], run
    try:
        with without_plans():
            yield _recorded
    finally:
        _recorded, _running = previous


def tiles(size: int, block: int) -> int:
    """Programs that cover ``size`` elements."""
    return -(-size // block)


def covering(size: int, rows: int = 1) -> Callable[[LaunchConfig], Grid]:
    """The grid of programs that cover ``size`` elements in each of some rows."""
    return lambda config: (rows * tiles(size, config.BLOCK),)


def both(values: Sequence[Any]) -> tuple[Any, Any]:
    """The values of up to two states, as kernels take them: None where there are fewer."""
    first, second, *_ = *values, None, None
    return first, second


def packed(tensor: Tensor) -> Tensor:
    """The tensor as kernels read it: its elements one after the other, as they stand in memory."""
    return tensor.contiguous().resolve_neg()


def sum_of_parts(partial: Tensor) -> Tensor:
    """What the parts, along the first axis, add up to."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's dtype of the arithmetic on tensors of a dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def constant_arguments(dynamics: Dynamics) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Gain, decay, rise and coupling; how many states there are, and which has N values."""
    decay, rise = both([dynamics.decay(state) for state in range(dynamics.states)])
    coupling = dynamics.coupling
    flags = {
        "DOUBLE": dynamics.states == 2,
        "GAIN_PER_SYNAPSE": dynamics.gain.ndim > 0,
        "DECAY_PER_SYNAPSE": decay.ndim > 0,
        "RISE_PER_SYNAPSE": rise is not None and rise.ndim > 0,
        "COUPLING_PER_SYNAPSE": coupling is not None and coupling.ndim > 0,
    }
    constants = [dynamics.gain, decay, rise, coupling]
    return [None if c is None else packed(c) for c in constants], flags


def locating_arguments(
    rule: ReadRule, time: torch.dtype
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """What ``locate`` takes of a rule at run time, and what of it and of the dtype of the times is
    compiled in."""
    mantissa, exponent = math.frexp(rule.step)
    # Neither such a step nor its inverse is subnormal in float32.
    exact = mantissa == 0.5 and abs(exponent) < 126
    numbers = tuple(map(float, (rule.step, 1.0 / rule.step, rule.limit, rule.tolerance)))
    # A fused multiply-add would round the distance to an observation differently.
    options = {"DIVIDE": not exact, "EPSILON": torch.finfo(time).eps, "enable_fp_fusion": False}
    return numbers, options


def launch(
    kernel: Any, grid: Grid | Callable[[LaunchConfig], Grid], *arguments: Argument, **how: Any
) -> None:
    """Makes a launch and runs it; see :func:`launch_of`."""
    run(launch_of(kernel, grid, *arguments, **how))


def run(made: Launch) -> None:
    """Runs a launch, or records it, if there is any work."""
    if 0 in made.grid:
        return
    if _recorded is not None:
        _recorded.append(made)
    captured: list[Launch] | None = getattr(_capture, "launches", None)
    if captured is not None:
        captured.append(made)
        # Where the interpreter runs, PyTorch computes within a launch: nobody else's concern.
        with _disable_current_modes():
            made.run()
    elif _running:
        made.run()


_capture = threading.local()


@contextmanager
def capturing() -> Iterator[list[Launch]]:
    """Collects the launches of this thread until the block ends; see :func:`replayed`."""
    found: list[Launch] = []
    _capture.launches = found
    try:
        yield found
    finally:
        _capture.launches = None


def launch_of(
    kernel: Any,
    grid: Grid | Callable[[LaunchConfig], Grid],
    *arguments: Argument,
    work: Work,
    dtype: torch.dtype,
    config: LaunchConfig | None = None,
    enable_fp_fusion: bool = True,
    **constants: Any,
) -> Launch:
    """A launch of a kernel with the settings for some work on elements of ``dtype``.

    ``arguments`` are its run-time arguments in order, ``constants`` its compile-time ones except
    those that the settings give. ``config`` replaces the settings that would be looked up.
    """
    if config is None:
        config = config_for(kernel.fn.__name__, work, dtype, _device(arguments))
    if callable(grid):
        grid = grid(config)
    constants["enable_fp_fusion"] = enable_fp_fusion
    return Launch(kernel, grid, arguments, constants, work, dtype, config)


def repeated(made: Launch) -> Callable[..., None]:
    """Runs the launch again with other arguments, at little cost: the settings are kept.

    They must be of the same dtypes, None where those were, and alike in what Triton compiles in:
    tensors aligned to 16 bytes or not, numbers that are 1 or multiples of 16.
    """
    if 0 in made.grid:
        return lambda *arguments: None
    kernel, grid, options = made.kernel, made.grid, made.options
    device = _device(made.arguments)

    def general(*arguments: Argument) -> None:
        with _current(device):
            kernel[grid](*arguments, **options)

    if interpreting():
        return general
    with _current(device):
        compiled = kernel.run(*made.arguments, grid=grid, warmup=True, **options)
        gpu, place = driver.active, driver.active.get_current_device()
    # What Triton does at the end of a launch, without its search for what it has compiled.
    call, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    constants = [options[name] for name in kernel.arg_names[len(made.arguments) :]]
    x, y, z = (*grid, 1, 1)[:3]
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook

    def again(*arguments: Argument) -> None:
        if enter.calls or leave.calls or gpu.get_current_device() != place:
            general(*arguments)
            return
        stream = gpu.get_current_stream(place)
        call(x, y, z, stream, function, metadata, None, None, None, *arguments, *constants)

    return again


class Call(NamedTuple):
    """What a call of which all work is launches was given and returned."""

    x: Tensor
    homes: Sequence[Tensor]
    """What was there before, besides constants: first the records, of the spikes last."""
    records: int
    slots: Sequence[Slot]
    """The pointer of each record before."""
    steps: int
    """By how much it has moved the pointers."""
    fresh: Sequence[Tensor]
    """What it has allocated."""
    y: Tensor


# Arguments that move with the pointers: whose they are.
_OF_RECORD = {"pos_pointer": 0, "neg_pointer": 1, "spike_pointer": -1}


class _Again(NamedTuple):
    """A launch of a replay."""

    run: Callable[..., None]
    arguments: list[Argument]
    tensors: Sequence[tuple[int, int, torch.dtype, int]]
    """Which arguments are of which tensor of the call, as what dtype, from which element on."""
    numbers: Sequence[tuple[int, int, int]]
    """Which arguments are the pointer of which record, and how far ahead."""


def replayed(
    launches: Sequence[Launch], call: Call
) -> Callable[[Tensor, Sequence[Slot]], Tensor] | None:
    """A call again: a function of an input like its own and of the pointers.

    None where an argument is a part of what was there before, which might move with the pointers.
    """
    values, size = [call.x, *call.fresh], call.homes[0].shape[0]
    found = [_again(made, call, values) for made in launches]
    places = {_memory(value): i for i, value in enumerate(values)}
    result, y = places.get(_memory(call.y), 0), call.y
    source = values[result]
    whole = y.data_ptr() == source.data_ptr() and y.numel() == source.numel()
    if None in found or not (result and whole and y.is_contiguous() and y.dtype == source.dtype):
        return None
    steps, shape = [again for again in found if again is not None], y.shape
    sizes, device = [(value.shape, value.dtype) for value in call.fresh], y.device

    def replay(x: Tensor, slots: Sequence[Slot]) -> Tensor:
        values = [x, *[torch.empty(size, dtype=dtype, device=device) for size, dtype in sizes]]
        for run, template, tensors, numbers in steps:
            arguments = template.copy()
            for i, place, dtype, offset in tensors:
                value = values[place]
                if value.dtype is not dtype:
                    value = value.view(dtype)
                arguments[i] = value.as_strided((1,), (1,), offset) if offset else value
            for i, record, ahead in numbers:
                arguments[i] = (slots[record] + ahead) % size
            run(*arguments)
        return values[result].view(shape)

    return replay


def _again(made: Launch, call: Call, values: Sequence[Tensor]) -> _Again | None:
    places = {_memory(value): i for i, value in enumerate(values)}
    kept = {_memory(home): home.data_ptr() for home in call.homes}
    records, size = [home.data_ptr() for home in call.homes[: call.records]], len(call.homes[0])
    arguments: list[Argument] = list(made.arguments)
    addresses = {a.data_ptr() for a in arguments if isinstance(a, Tensor)}
    own = next((i for i, address in enumerate(records) if address in addresses), 0)
    tensors, numbers = [], []
    for i, (name, a) in enumerate(zip(made.kernel.arg_names, made.arguments, strict=False)):
        if isinstance(a, Tensor):
            place = places.get(_memory(a))
            if place is not None and a.itemsize == values[place].itemsize:
                offset = (a.data_ptr() - values[place].data_ptr()) // a.itemsize
                tensors.append((i, place, a.dtype, offset))
                arguments[i] = None
            elif place is not None or kept.get(_memory(a), a.data_ptr()) != a.data_ptr():
                return None
            else:
                arguments[i] = a.data  # which keeps no graph
        elif isinstance(a, int) and name.endswith(("pointer", "slot")):
            record = _OF_RECORD.get(name, own)
            ahead = (a - call.slots[record]) % size
            if ahead not in (0, call.steps % size):  # before or after the pointers have moved
                return None
            numbers.append((i, record, int(ahead)))
    return _Again(repeated(made), arguments, tensors, numbers)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@lru_cache(maxsize=4096)
def settings(function: Any, config: LaunchConfig) -> dict[str, int]:
    """The part of a configuration that Triton takes: its own options, and the kernel's tiles.

    Cached by the kernel's function, because Triton's own object is slow to hash.
    """
    taken = {*signature(function).parameters, "num_warps", "num_stages"}
    return {name: value for name, value in config.as_dict().items() if name in taken}


def _device(arguments: tuple[Argument, ...]) -> torch.device:
    return next(a.device for a in arguments if isinstance(a, Tensor))


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU current: Triton launches on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
