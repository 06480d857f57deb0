"""Calls of a kernel's launcher and of its reference with the same arguments."""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tritonsyn.testing import guarded, poisoned_empty

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FLOATING = (F64, F32, BF16, F16)
INPUTS = (torch.bool, torch.uint8, torch.int64, *FLOATING)


class Outcome(NamedTuple):
    """What a call returned and what it left in its arguments, flat, on the CPU."""

    returned: list[torch.Tensor]
    arguments: list[torch.Tensor]


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested sequences."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from tensors(branch)


def replaced(tree: Any, others: Iterator[torch.Tensor]) -> Any:
    """The same sequences, each tensor replaced by the next of the others."""
    if isinstance(tree, torch.Tensor):
        return next(others)
    if isinstance(tree, (tuple, list)):
        branches = [replaced(branch, others) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else branches
    return tree


def exact(tree: Any) -> Any:
    """The arguments with every floating tensor in float64."""
    return replaced(tree, (t.to(F64) if t.is_floating_point() else t for t in tensors(tree)))


def called(function: Any, *arguments: Any) -> Any:
    """The function of these arguments."""
    return function(*arguments)


def by_reference(stem: str, name: str, *arguments: Any, call: Any = called) -> Outcome:
    """``tritonsyn.reference.<stem>.<name>`` on copies of the arguments, on the CPU."""
    copies = [t.detach().cpu().clone() for t in tensors(arguments)]
    function = getattr(importlib.import_module(f"tritonsyn.reference.{stem}"), name)
    returned = call(function, *replaced(arguments, iter(copies)))
    return Outcome(list(tensors(returned)), copies)


def by_kernel(
    device: torch.device,
    stem: str,
    name: str,
    *arguments: Any,
    margin: int = 64,
    call: Any = called,
) -> Outcome:
    """``tritonsyn.launch.<stem>.<name>`` on guarded copies, its allocations poisoned."""
    function = getattr(importlib.import_module(f"tritonsyn.launch.{stem}"), name)
    originals = [t.detach().to(device) for t in tensors(arguments)]
    with guarded(*originals, margin=margin) as copies:
        with poisoned_empty():
            returned = call(function, *replaced(arguments, iter(copies)))
        outcome = Outcome(*([t.cpu().clone() for t in tensors(r)] for r in (returned, copies)))
    return outcome


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random float64 numbers between 0 and 1, the same on every machine."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
