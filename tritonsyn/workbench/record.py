"""Launches of public calls, as values: what is compiled and timed is what is launched."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..backend import pretend_triton
from ..launch.config import LaunchConfig, override_config
from . import calls
from .calls import CALLS, Call, Shape

if TYPE_CHECKING:
    from ..launch.launcher import Argument, Launch

META = torch.device("meta")  # tensors without values, and so of any size
_lock = threading.RLock()  # recording and overriding hold for all threads


@dataclass(frozen=True)
class Pointer:
    """Stands for a tensor where Triton compiles for it."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        """An address, as far as Triton looks at it."""
        return 0 if self.aligned else self.dtype.itemsize


class Variant(NamedTuple):
    """One way in which a kernel is called, as far as the compiler can tell."""

    kernel: str
    # Those of run time. A number stands for all that are specialised alike.
    arguments: tuple[Pointer | int | float | None, ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: bool  # the sizes of the call are multiples of 16, and so are all addresses

    @classmethod
    def of(cls, launch: "Launch", shape: Shape) -> "Variant":
        """The variant of a launch in a call at a shape."""
        arguments = tuple(map(_argument, launch.arguments))
        pointers = [a for a in arguments if isinstance(a, Pointer)]
        aligned = shape.synapses % 16 == 0 and all(pointer.aligned for pointer in pointers)
        return cls(launch.name, arguments, tuple(launch.constants.items()), aligned)


def passed_arguments(launch: "Launch") -> dict[str, "Argument"]:
    """Those that a compiled kernel takes, by name: neither absent ones, nor whole numbers of 1."""
    named = zip(launch.kernel.arg_names, launch.arguments, strict=False)
    return {
        name: argument
        for name, argument in named
        if not (argument is None or (isinstance(argument, int) and argument == 1))
    }


def _argument(argument: "Argument") -> Pointer | int | float | None:
    if isinstance(argument, torch.Tensor):
        start = argument.storage_offset() * argument.itemsize
        address = start if argument.is_meta else argument.data_ptr()
        return Pointer(argument.dtype, address % 16 == 0)
    if isinstance(argument, float):
        return 0.0
    if argument is None or argument == 1:
        return argument
    return (1 << 32 if argument >= 1 << 31 else 16) + (argument % 16 != 0)


def record(
    call: Call, shape: Shape, dtype: torch.dtype, device: torch.device = META
) -> "list[Launch]":
    """The launches of a call. On a GPU they also run, so that each reads what it would read."""
    from ..launch.launcher import recording

    gpu = device.type == "cuda"
    with _lock, nullcontext() if gpu else pretend_triton(), recording(run=gpu) as launches:
        call(shape, dtype, device)
    return launches


def record_run(
    prepare: Callable[[], Callable[[], object]], around: AbstractContextManager[Any]
) -> "list[Launch]":
    """The launches of what ``prepare`` returns, on tensors without values; it runs ``around``."""
    from ..launch.launcher import recording

    with _lock, pretend_triton(), recording():
        run = prepare()
        with recording() as launches, around:
            run()
    return launches


def launches_of(
    kernel: str,
    shape: Shape,
    dtype: str,
    config: LaunchConfig | None = None,
    device: torch.device = META,
) -> "list[Launch]":
    """The launches of a kernel in the call in which it is tuned, under a configuration.

    The last of them does the main part of the work: before it chunks of a scan make their carries.
    """
    with _lock, override_config(config, kernel) if config else nullcontext():
        launches = record(CALLS[kernel], shape, getattr(torch, dtype), device)
    return [launch for launch in launches if launch.name == kernel]


@lru_cache(maxsize=4096)
def main_launch(
    kernel: str, shape: Shape, dtype: str, config: LaunchConfig | None = None
) -> "Launch":
    """The launch that does the main part of the work, on tensors without values."""
    return launches_of(kernel, shape, dtype, config)[-1]


@lru_cache(maxsize=1)
def variants() -> "dict[Variant, tuple[Launch, ...]]":
    """The variants of all kernels, each with the launches that it stands for."""
    found: dict[Variant, list[Launch]] = {}
    for call, shape, dtype in calls.variants():
        for launch in record(call, shape, dtype):
            if launch.stem in calls.STEMS[call.function]:
                found.setdefault(Variant.of(launch, shape), []).append(launch)
    for kernel in CALLS:
        for launch in launches_of(kernel, calls.ODD, "float32"):
            found.setdefault(Variant.of(launch, calls.ODD), []).append(launch)
    return {variant: tuple(launches) for variant, launches in found.items()}
