"""What every launch needs: tile counts, dtypes, and the compiled kernel for its arguments."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl

from ..backend import interpreting

_Compiled = tuple[Any, tuple[Any, ...]]
"""A compiled kernel, and the compile-time arguments that follow those of a launch."""

_compiled: dict[tuple[Any, ...], _Compiled] = {}


def tiles(size: int, block: int) -> int:
    """Programs that cover ``size`` elements."""
    return -(-size // block)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's dtype of the arithmetic on tensors of a dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: torch.Tensor | int | None,
    num_warps: int,
    enable_fp_fusion: bool = True,
    **constants: Any,
) -> None:
    """Runs a kernel on the GPU of its tensors.

    ``args`` are its run-time arguments in order, ``constants`` its compile-time ones. Triton looks
    a compiled kernel up by options and text that it puts together in every call; here a key of
    what it compiles in finds the kernel at a fraction of that.
    """
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    if interpreting():
        kernel[grid](*args, **constants, **options)
        return
    device, kinds = _kinds(args)
    key = (kernel.fn, device, num_warps, enable_fp_fusion, *constants.items(), *kinds)
    with _current(device):
        found = _compiled.get(key)
        if found is None:
            compiled = kernel[grid](*args, **constants, **options)
            tail = tuple(constants[name] for name in kernel.arg_names[len(args) :])
            _compiled[key] = compiled, tail
        else:
            compiled, tail = found
            compiled[(*grid, 1, 1)[:3]](*args, *tail)


def _kinds(args: Sequence[torch.Tensor | int | None]) -> tuple[torch.device | None, list[Any]]:
    """The device of the tensors, and what of the arguments Triton may compile in.

    That is the type of each, whether an address or a number is a multiple of 16, and a number 1.
    """
    device: torch.device | None = None
    kinds: list[Any] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            device = arg.device
            kinds += arg.dtype, arg.data_ptr() % 16 == 0
        elif arg is None or arg == 1:
            kinds.append(arg)
        else:
            kinds.append((arg % 16 == 0, arg >> 31))
    return device, kinds


def _current(device: torch.device | None) -> AbstractContextManager[object]:
    """Makes a GPU current: Triton launches on the current one."""
    if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
