"""Reads of a sequence at one time for each synapse, the same at every step."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..values import Reading, ReadRule
from .common import (
    chained,
    distinct,
    first_order,
    implementation,
    keep,
    kept,
    running,
    without_graph,
)
from .operator import operator

Tensors = list[Tensor]
Optionals = list[Tensor | None]


def _steady(sel: Tensor) -> ModuleType:
    """Made of PyTorch's operations: kernels read such sequences as they read others."""
    return implementation("steady", sel.device, "reference")


def _like_sequence(pasts, sequences, sel, rates, *settings):  # type: ignore[no-untyped-def]
    steps, like = settings[5], sequences[0]
    return like.new_empty(steps, *like.shape[1:])


@operator(fake=_like_sequence)
def read_sequence(
    pasts: Tensors,
    sequences: Tensors,
    sel: Tensor,
    rates: Optionals,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    overbound: float | None,
    steps: int,
    slots: int,
    backend: str | None,
) -> Tensor:
    """The value at every step, ``[steps, B, N]``.

    Sequences are ``[rows, B, N]``, their pasts ``[K - 1, B, N]`` or none, times ``[1, N, 1]``. From
    ``mode`` to ``overbound`` the arguments are the fields of a :class:`ReadRule`.
    """
    resolve(sel.device, backend)
    reading = Reading(sel, rates, (), ReadRule(mode, step, limit, tolerance, overbound), steps)
    return _steady(sel).read(pasts, sequences, reading, slots)


def _like_gradients(dvalue, pasts, sequences, sel, rates, *settings):  # type: ignore[no-untyped-def]
    rows, wanted = settings[7:9]
    found = [
        dvalue.new_empty(n, *dvalue.shape[1:])
        for n, want in zip(rows, wanted[:2], strict=True)
        for _ in rates
        if want
    ]
    given = [rate for rate in rates if rate is not None]
    constants = ([sel] if wanted[2] else []) + (given if wanted[3] else [])
    return found + [torch.empty_like(constant) for constant in constants]


@operator(fake=_like_gradients)
def read_sequence_adjoint(
    dvalue: Tensor,
    pasts: Tensors,
    sequences: Tensors,
    sel: Tensor,
    rates: Optionals,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    overbound: float | None,
    steps: int,
    slots: int,
    rows: list[int],
    wanted: list[bool],
) -> Tensors:
    """The gradients of pasts, sequences, times and rates, where each is wanted.

    ``rows`` are those of a past and of a sequence, which are missing where no constant's gradient
    is wanted.
    """
    reading = Reading(sel, rates, (), ReadRule(mode, step, limit, tolerance, overbound), steps)
    return _steady(sel).adjoint(dvalue, pasts, sequences, reading, slots, rows, wanted)


_Settings = tuple[ReadRule, int, int, str | None, int, bool]
"""The rule, how many steps, K, the backend, how many components; whether nobody writes them."""


class _ReadSequence(torch.autograd.Function):
    """Takes the past of each component, or None, the sequences, the times and the rates."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Any) -> Tensor:
        rule, *size, backend, count, owned = settings
        given, sequences, (sel, *rates) = _grouped(tensors, count)
        pasts = [past for past in given if past is not None]
        value = read_sequence(pasts, sequences, sel, rates, *rule, *size, backend)
        *_, of_constants = _grouped(ctx.needs_input_grad[1:], count)
        if rule.flat:
            of_constants[0] = False
        seen: list[list[Tensor]] = [[], []]
        if any(of_constants):
            seen = [pasts, sequences if owned else [rows.clone() for rows in sequences]]
        ctx.settings, ctx.rows = settings, [len(pasts[0]) if pasts else 0, len(sequences[0])]
        keep(ctx, *seen, [sel], rates)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, dvalue: Tensor) -> tuple[Tensor | None, ...]:
        rule, *size, _, count, _ = ctx.settings
        pasts, sequences, (sel,), rates = kept(ctx)
        wants = ctx.needs_input_grad[1:]
        of_pasts, of_sequences, (of_sel, *of_rates) = _grouped(wants, count)
        wanted = [any(of_pasts), any(of_sequences), of_sel and not rule.flat, any(of_rates)]
        operands = (dvalue.contiguous(), pasts, sequences, sel, rates)
        settings = (*rule, *size, ctx.rows, wanted)
        found = iter(read_sequence_adjoint(*operands, *settings) if any(wanted) else ())
        there = [wanted[0]] * count + [wanted[1]] * count + [wanted[2]]
        there += [wanted[3] and rate is not None for rate in rates]
        gradients = [next(found) if one else None for one in there]
        if of_sel and rule.flat:
            gradients[2 * count] = torch.zeros_like(sel)
        return None, *gradients


def _grouped(values: Sequence[Any], count: int) -> tuple[list[Any], list[Any], list[Any]]:
    """What belongs to the pasts, to the sequences, and to times and rates."""
    return list(values[:count]), list(values[count : 2 * count]), list(values[2 * count :])


def read_steadily(
    pasts: Sequence[Tensor],
    sequences: Sequence[Tensor],
    reading: Reading,
    slots: int,
    *,
    owned: bool,
    backend: str | None,
) -> Tensor:
    """The read of a sequence ``[rows, B, N]``, or of a pair, at every step: ``[steps, B, N]``.

    What comes before it may be in ``pasts [K - 1, B, N]``; what is missing up to K - 1 rows and the
    steps is zero. Times are ``[1, N, 1]``. Differentiable to all of them. What is not ``owned`` may
    be written before the backward pass.
    """
    sel, rates, _, rule, steps = reading
    backend = running(sel.device, backend)
    if chained(sel, *rates, *pasts, *sequences):
        settings = rule, steps, slots, backend, len(sequences), owned
        before: Sequence[Tensor | None] = pasts or [None] * len(sequences)
        return _ReadSequence.apply(settings, *before, *sequences, sel, *distinct(rates))
    operands = (list(pasts), list(sequences), sel, list(rates))
    with without_graph():
        return read_sequence(*operands, *rule, steps, slots, backend)
