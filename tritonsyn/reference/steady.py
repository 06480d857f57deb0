"""Reads of a sequence whose times stay: one for each synapse, at every step.

All steps read at the same distances. So what a step reads is weighted and added up first, and each
synapse's sum is shifted once; the adjoint shifts the gradient back.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..values import Located, Reading, compute_dtype, locate, readable
from .read import Weights, replace_unread, row_groups, second_sign, taps, zero_unread

Tensors = list[Tensor]

# Elements of some samples: more leave the cache, of fewer each operation waits for its threads.
_TOGETHER = 1 << 19


class _Seen(NamedTuple):
    """What a step reads of each synapse; everything ``[N]``, or ``[1]`` for all."""

    slots: int
    """Observations that a step sees, K."""
    back: Tensor
    """Whole steps from a step to the oldest observation that counts, int64."""
    near: Tensor | None
    """How much the observation after that counts, which the oldest lacks; None: nothing."""
    components: list[Weights]
    """Of each component, with its sign; with ``near`` the slope is that of the oldest's share."""
    located: Located

    @property
    def span(self) -> int:
        """Observations that count."""
        return 1 if self.near is None else 2


def _seen(reading: Reading, slots: int, dtype: torch.dtype, slopes: bool = False) -> _Seen:
    """The observations of the reading and their weights, with slopes if these are wanted."""
    sel, rates, _, rule, _ = reading
    located = locate(sel.view(-1), rule, slots)
    usable, near, components = located, None, []
    if not located.valid:
        numbers = located.older.nan_to_num(0.0), located.fraction.nan_to_num(0.0)
        usable = Located(*numbers, located.inside, located.within)
    if slots == 1 and rule.mode == "linear":  # between nothing
        rule = rule._replace(mode="previous")
    whole = Weights(sel.new_ones(1, dtype=dtype), None, None)
    want_slope = slopes or rule.mode == "linear"  # which makes the ends of a segment neighbours
    for i, rate in enumerate(rates):
        oldest, *after = taps(rule, usable, rate, slots, dtype, i > 0, want_slope, slopes)
        own = whole if oldest.weigh is None else oldest.weigh()
        if after:
            assert after[0].weigh is not None
            own, near = whole._replace(slope=own.slope), after[0].weigh().weight
        components.append(own.negated() if i > 0 and second_sign(rule) < 0 else own)
    return _Seen(slots, oldest.back.long(), near, components, located)


def read(pasts: Tensors, sequences: Tensors, reading: Reading, slots: int) -> Tensor:
    """The value of a sequence, or of a pair of them, at every step: ``[steps, B, N]``.

    ``sequences [rows, B, N]``; before them their ``pasts``, if there are any, and zeros up to K - 1
    rows and the steps. The reading has one time for each synapse.
    """
    steps, like = reading.steps, sequences[0]
    acc, rows = compute_dtype(like.dtype), slots - 1 + steps
    seen = _seen(reading, slots, acc)
    value = like.new_empty(steps, *like.shape[1:])
    for part in _parts(like, rows):
        sums = _added(_pieces(pasts, sequences, part), seen, rows, acc)
        if seen.near is not None:
            sums = _between(sums, seen.near)
        shifted = _shifted(sums, slots - 1 - seen.back, steps)
        shifted = replace_unread(shifted, seen.located, reading.rule, like.dtype)
        value[:, part] = shifted.transpose(0, 1)
    return value


def adjoint(
    dvalue: Tensor,
    pasts: Tensors,
    sequences: Tensors,
    reading: Reading,
    slots: int,
    rows: Sequence[int],
    wanted: Sequence[bool],
) -> Tensors:
    """The gradients of pasts, sequences, times and rates of :func:`read`, of which each is wanted
    or not.

    ``rows`` are those of a past, 0 without one, and of a sequence. Both may be missing where no
    gradient of times and rates is wanted.
    """
    want_times, want_rates = wanted[2:]
    constants = want_times or want_rates
    acc, count = compute_dtype(dvalue.dtype), len(reading.rates)
    seen = _seen(reading, slots, acc, constants)
    sizes = [rows[0] if wanted[0] or constants else 0, rows[1]]
    known, size = sum(sizes), dvalue.shape[1:]
    # First those of the pasts, of each component, then those of the sequences.
    gradients = [
        [dvalue.new_empty(n, *size) for _ in range(count)] if want else []
        for n, want in zip(sizes, wanted[:2], strict=True)
    ]
    sums = dvalue.new_zeros(count, size[1], dtype=acc)
    for part in _parts(dvalue, known):
        dsums = _shifted_back(dvalue[:, part], seen, known, acc)
        dsums = zero_unread(dsums, seen.located, reading.rule)
        if constants:
            _add_products(sums, dsums, _pieces(pasts, sequences, part), seen)
        drows = dsums if seen.near is None else _between_adjoint(dsums, seen.near)
        for found, values in zip(gradients, drows.split(sizes, 1), strict=True):
            for gradient, component in zip(found, seen.components, strict=False):
                torch.mul(values.transpose(0, 1), component.weight, out=gradient[:, part])
    results = gradients[0] + gradients[1]
    results += [_of_times(sums, seen, reading)] if want_times else []
    return results + (_of_rates(sums, seen, reading) if want_rates else [])


def _parts(like: Tensor, rows: int) -> list[slice]:
    """Of the batch so few samples at once that intermediate results stay in the cache."""
    return row_groups(like.shape[1], rows * like.shape[2], like.device, _TOGETHER)


def _pieces(pasts: Tensors, sequences: Tensors, part: slice) -> list[Tensors]:
    """Of each component the rows of some samples, ``[samples, rows, N]``: its past and after it."""
    pairs = zip(pasts, sequences, strict=True) if pasts else ((rows,) for rows in sequences)
    return [[rows[:, part].transpose(0, 1) for rows in pieces] for pieces in pairs]


def _added(components: list[Tensors], seen: _Seen, rows: int, dtype: torch.dtype) -> Tensor:
    """The weighted sum of the components ``[samples, rows, N]``, with zeros before them."""
    like = components[0][-1]
    total = like.new_empty(like.shape[0], rows, like.shape[2], dtype=dtype)
    total[:, : rows - sum(piece.shape[1] for piece in components[0])] = 0.0
    for i, (pieces, own) in enumerate(zip(components, seen.components, strict=True)):
        for here, piece in _placed(total, pieces):
            if i == 0:
                torch.mul(piece, own.weight, out=here)
            else:
                here.add_(piece * own.weight)
    return total


def _placed(rows: Tensor, pieces: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece, and the rows in its place; the last one ends with them."""
    end = rows.shape[1]
    for piece in reversed(pieces):
        first = end - piece.shape[1]
        yield rows[:, first:end], piece
        end = first


def _between(rows: Tensor, near: Tensor) -> Tensor:
    """Of each two rows of ``[samples, R, N]`` the mean, in which the second counts ``near``."""
    older, newer = rows[:, :-1], rows[:, 1:]
    far = 1.0 - near
    unread = near * far == 0.0
    if readable(unread) and not unread.any():
        return (older * far).add_(newer * near)
    # What does not count may be anything.
    return (older * far).masked_fill_(far == 0.0, 0.0) + (newer * near).masked_fill_(near == 0, 0.0)


def _between_adjoint(dmeans: Tensor, near: Tensor) -> Tensor:
    """Adjoint of :func:`_between`, whose first row is that between the first row and one before."""
    drows = dmeans * near
    drows[:, :-1].addcmul_(dmeans[:, 1:], 1.0 - near)
    return drows


def _shifted(rows: Tensor, start: Tensor, count: int) -> Tensor:
    """Of each synapse in ``[samples, R, N]`` so many rows from one of them on, ``start [N]``."""
    samples, length, synapses = rows.shape
    size = samples, count, (length - count + 1) * synapses
    windows = rows.as_strided(size, (length * synapses, synapses, 1))
    cells = start * synapses + torch.arange(synapses, device=rows.device)
    return windows.gather(2, cells.expand(samples, count, synapses))


def _shifted_back(dvalue: Tensor, seen: _Seen, known: int, dtype: torch.dtype) -> Tensor:
    """The gradient of the last sums, as many as rows are known; of two observations each, that of
    the last row and the one after it, which there is not, left out."""
    steps, samples, synapses = dvalue.shape
    after = seen.slots - seen.span
    around = dvalue.new_empty(samples, known + after, synapses, dtype=dtype)
    around[:, : known - steps] = 0.0
    around[:, known - steps : known] = dvalue.transpose(0, 1)
    around[:, known:] = 0.0
    return _shifted(around, seen.back - (seen.span - 1), known)


def _add_products(sums: Tensor, dsums: Tensor, components: list[Tensors], seen: _Seen) -> None:
    """Adds what the gradient has in common with each component ``[components, N]``; or with the
    difference that times see where two observations count."""
    if seen.near is not None:
        known = dsums.shape[1]
        rows = _added(components, seen, known + 1, dsums.dtype)
        # Subtracted first: neighbours are often close to each other.
        sums[0] += _dot(dsums, rows[:, :-1] - rows[:, 1:])
        return
    for total, pieces in zip(sums, components, strict=True):
        for here, piece in _placed(dsums, pieces):
            total += _dot(here, piece)


def _dot(gradient: Tensor, values: Tensor) -> Tensor:
    """``sum of gradient * values`` of each synapse, in which values without a gradient may be
    anything: no step reads them."""
    products = gradient * values
    total = products.sum((0, 1))
    if readable(total) and math.isfinite(total.sum().item()):
        return total
    return products.masked_fill_(gradient == 0.0, 0.0).sum((0, 1))


def _of_times(sums: Tensor, seen: _Seen, reading: Reading) -> Tensor:
    """The gradient of the times: zero where one was bounded."""
    total = torch.zeros_like(sums[0])
    for products, own in zip(sums, seen.components, strict=True):
        if own.slope is not None:
            total += products * own.slope
    if seen.located.within is not None:
        total = torch.where(seen.located.within, total, 0.0)
    return total.view(reading.sel.shape).to(reading.sel.dtype)


def _of_rates(sums: Tensor, seen: _Seen, reading: Reading) -> Tensors:
    """The gradients of the rates that there are."""
    found = []
    for products, own, rate in zip(sums, seen.components, reading.rates, strict=True):
        if rate is not None:
            slope = own.rate_slope
            each = torch.zeros_like(products) if slope is None else products * slope
            found.append(each.sum_to_size(rate.shape))
    return found
