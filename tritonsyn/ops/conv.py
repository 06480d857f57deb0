"""Delayed convolutions: windows over the positions of an input, with a delay for each connection.

What is delayed are the currents of the input, each of which belongs to many windows: they are
computed once, and no window is written out unless the sums need it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..values import after_zeros, compute_dtype, readable
from .common import chained, first_order, keep, kept, without_autocast
from .delayed import End, Run
from .operator import operator
from .projection import Way, project_component, project_component_backward, total, way_of
from .shared import Shared, delayed_currents
from .spread import SpreadSettings, delayed_product, smoothed_slopes, spread
from .strategy import Work, cheapest
from .taps import Taps

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Windows(NamedTuple):
    """Which positions of an input each position of the output sees, as in torch's convolutions."""

    size: tuple[int, ...]
    """Of the input, without batch and channels."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Zeros before and after each axis."""
    groups: int

    @property
    def span(self) -> tuple[int, ...]:
        """Positions from the first to the last one of a window."""
        return tuple([d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)])

    @property
    def padded(self) -> tuple[int, ...]:
        """Size of the padded input."""
        return tuple([n + sum(p) for n, p in zip(self.size, self.padding, strict=True)])

    @property
    def positions(self) -> tuple[int, ...]:
        """Size of the output."""
        axes = zip(self.padded, self.span, self.stride, strict=True)
        return tuple([(n - span) // stride + 1 for n, span, stride in axes])

    def places(self) -> Iterator[tuple[slice, ...]]:
        """For each place in the kernel, in order, the positions that it sees of a padded input."""
        for place in product(*map(range, self.kernel)):
            axes = zip(place, self.dilation, self.positions, self.stride, strict=True)
            yield tuple([slice(q * d, q * d + (n - 1) * s + 1, s) for q, d, n, s in axes])


def convolve(x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """Torch's convolution of ``x [N, C, *size]`` with ``weight [O, C / groups, *kernel]``.

    An axis before the positions is one more of the convolution, without padding. The result is
    ``[N, O, *positions]``, in the arithmetic's own dtype under autocast too.
    """
    others = x.ndim - 2 - len(windows.size)
    padding = [0] * others + [before for before, _ in windows.padding]
    if any(before != after for before, after in windows.padding):
        # The last axis comes first.
        x = F.pad(x, [n for pair in reversed(windows.padding) for n in pair])
        padding = [0] * len(padding)
    stride, dilation = ([1] * others + list(n) for n in (windows.stride, windows.dilation))
    with without_autocast(x.device):
        convolution = _CONVOLUTIONS[x.ndim - 2]
        return convolution(x, weight, None, stride, padding, dilation, windows.groups)


def convolve_rows(rows: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """The same of rows ``[T, B * positions, C]``, in their dtype: ``[T, B, O, *positions]``."""
    steps = rows.shape[0]
    x = rows.reshape(-1, *windows.size, rows.shape[-1]).movedim(-1, 1)
    return convolve(x, weight.to(x.dtype), windows).unflatten(0, (steps, -1))


def project_windows_shared(run: Run, connections: Shared, windows: Windows) -> tuple[Tensor, End]:
    """What the windows give after each step, ``[T, B, O, *positions]``, and the end of the run.

    ``run.x [T, B * positions, C]``, its channels last; each channel has one delay.
    """
    delayed, end = delayed_currents(run, connections)
    return convolve_rows(delayed, connections.weight, windows), end


def project_windows(run: Run, taps: Taps, windows: Windows, *, strategy: str) -> tuple[Tensor, End]:
    """The same where each connection has a delay, in the dtype of the weights.

    ``taps [O / groups, C * places]``: row r is that of the r-th output of each group, so that each
    input has its own column; places are those of the kernel.
    """
    before, (sequences, end) = run.before(), run.scanned()
    if before is not None:
        sequences = [torch.cat(pair) for pair in zip(before, sequences, strict=True)]
    operands = sequences, taps, run.x.shape[0], run.slots, windows
    if strategy == "auto":
        strategy = _cheapest(run, taps, windows)
    if strategy == "gemm":
        y = _by_products(*operands)
        # As in a dense layer: where a number is not finite, zeros of the kernel spread it.
        if not readable(y) or y.detach().sum().isfinite():
            return y, end
    return _by_shifts(*operands, run.backend), end


def _cheapest(run: Run, taps: Taps, windows: Windows) -> str:
    steps, rows, _ = run.x.shape
    outputs = rows // prod(windows.size) * prod(windows.positions)
    of_place = min(windows.groups, taps.back.numel() // prod(windows.kernel) // windows.groups)
    parts = prod(windows.kernel) * of_place * len(taps.weights)
    finite = not run.x.dtype.is_floating_point
    work = Work(steps * outputs * taps.back.numel(), 0, run.slots, None, False, finite, parts)
    return cheapest(work, run.x.device)


# -- products ---------------------------------------------------------------------------------


def _by_products(
    sequences: Sequence[Tensor], taps: Taps, steps: int, slots: int, windows: Windows
) -> Tensor:
    """A convolution over time and space, of which each connection is one element of the kernel."""
    parts = []
    for sequence, weight in zip(sequences, taps.weights, strict=True):
        kernel = kernel_over_time(weight, taps.back, slots, windows)
        parts.append(_over_time(sequence.to(weight.dtype), kernel, steps, windows))
    return total(parts)


def kernel_over_time(weight: Tensor, back: Tensor, slots: int, windows: Windows) -> Tensor:
    """Taps ``[O / groups, C * places]`` as a kernel ``[O, C / groups, K, *kernel]``, oldest first.

    Where there is no connection it is zero.
    """
    tap, back = _of_outputs(weight, windows), _of_outputs(back, windows).long()
    kernel = tap.new_zeros(*tap.shape[:2], slots, tap.shape[2])
    kernel = kernel.scatter(2, (slots - 1 - back).unsqueeze(2), tap.unsqueeze(2))
    return kernel.unflatten(3, windows.kernel)


def _over_time(sequence: Tensor, kernel: Tensor, steps: int, windows: Windows) -> Tensor:
    """The convolution of the last steps with a kernel ``[O, C / groups, K, *kernel]``."""
    slots, axes = kernel.shape[2], len(windows.size)
    if sequence.device.type == "cpu" and sequence.dtype == torch.float64:
        # Torch would write all windows of K steps out, not of one.
        sequence = after_zeros(sequence, slots - 1 + steps)
        y = convolve_rows(sequence[:steps], kernel[:, :, 0], windows)
        for k in range(1, slots):
            y = y + convolve_rows(sequence[k : k + steps], kernel[:, :, k], windows)
        return y
    x = sequence.unflatten(1, (-1, *windows.size)).movedim(-1, 0).movedim(2, 0)
    missing = slots - 1 + steps - sequence.shape[0]
    x = F.pad(x, (*(0, 0) * axes, missing, 0))  # [B, C, rows, *size]
    return convolve(x, kernel, windows).movedim(2, 0)


def _of_outputs(tap: Tensor, windows: Windows) -> Tensor:
    """``[O / groups, C * places]`` as ``[O, C / groups, places]``."""
    rows, groups = tap.shape[0], windows.groups
    by_group = tap.reshape(rows, groups, -1, prod(windows.kernel)).transpose(0, 1)
    return by_group.flatten(0, 1)


# -- shifted rows -----------------------------------------------------------------------------


class _Part(NamedTuple):
    """Connections at one place of the kernel that are summed together."""

    seen: tuple[slice, ...]
    """Of the padded sequence ``[rows, B, *padded, C]``."""
    taps: tuple[slice, slice]
    """Of the taps ``[O / groups, C * places]``."""
    outputs: slice
    alone: bool
    """Whether each of the outputs reads one of the inputs, in order, and not all of them."""


def _parts(windows: Windows, outputs: int, channels: int) -> Iterator[_Part]:
    """The connections of a group; or where groups are many and small one of each group."""
    every, groups, places = slice(None), windows.groups, prod(windows.kernel)
    inner, outer = channels // groups, outputs // groups
    for at, positions in enumerate(windows.places()):
        seen = every, every, *positions
        if inner * outer < groups:
            for i, row in product(range(inner), range(outer)):
                taps = slice(row, row + 1), slice(i * places + at, None, inner * places)
                yield _Part((*seen, slice(i, None, inner)), taps, slice(row, None, outer), True)
        else:
            for group in range(groups):
                first, end = group * inner, (group + 1) * inner
                columns = slice(first * places + at, (end - 1) * places + at + 1, places)
                own = slice(group * outer, (group + 1) * outer)
                yield _Part((*seen, slice(first, end)), (every, columns), own, False)


def _rows_back(back: Tensor, steps: int, slots: int, batch: int) -> Tensor:
    """Numbers ``[T, B, N]`` of the rows, of ``K - 1 + T``, that steps read ``back [1, N]`` ago."""
    own = torch.arange(slots - 1, slots - 1 + steps, device=back.device).unsqueeze(1)
    return (own - back).unsqueeze(1).expand(-1, batch, -1)


def _read_alone(rows: Tensor, weight: Tensor, back: Tensor, steps: int, slots: int) -> Tensor:
    """``weight[0, n] * rows[t - back[0, n], b, n]`` at the last steps of ``rows [R, B, N]``."""
    whole = after_zeros(rows.to(weight.dtype), slots - 1 + steps)
    return whole.gather(0, _rows_back(back, steps, slots, rows.shape[1])).mul_(weight)


def _read_alone_backward(
    dy: Tensor, rows: Tensor | None, weight: Tensor | None, back: Tensor, count: int, slots: int
) -> list[Tensor]:
    """``[*drows, *dweight]`` of this, as :func:`project_component_backward` gives them."""
    steps, batch, _ = dy.shape
    index, found = _rows_back(back, steps, slots, batch), []
    size = slots - 1 + steps
    if weight is not None:
        drows = dy.new_zeros(size, *dy.shape[1:]).scatter_(0, index, dy * weight)
        found.append(drows[size - count :])
    if rows is not None:
        whole = after_zeros(rows.to(dy.dtype), size)
        found.append((dy * whole.gather(0, index)).sum((0, 1)).unsqueeze(0))
    return found


def _padded(sequence: Tensor, windows: Windows) -> Tensor:
    """A sequence ``[rows, B * positions, C]`` as ``[rows, B, *padded, C]``."""
    x = sequence.unflatten(1, (-1, *windows.size))
    padding = [0, 0, *(n for pair in reversed(windows.padding) for n in pair)]
    return F.pad(x, padding) if any(padding) else x


def _numbers(windows: Windows) -> tuple[list[int], int]:
    """The windows over a padded input as operators take them."""
    axes = zip(windows.padded, windows.kernel, windows.stride, windows.dilation, strict=True)
    return [n for axis in axes for n in axis], windows.groups


def _sized(sizes: list[int], groups: int) -> Windows:
    """The same windows, of these numbers."""
    size, kernel, stride, dilation = (tuple(sizes[i::4]) for i in range(4))
    return Windows(size, kernel, stride, dilation, ((0, 0),) * len(size), groups)


def _like_windows(sequence, weight, back, steps, slots, sizes, groups, *way):  # type: ignore[no-untyped-def]
    rows = sequence.shape[1] * prod(_sized(sizes, groups).positions)
    return weight.new_empty((steps, rows, weight.shape[0] * groups))


@operator(fake=_like_windows)
def shift_windows(
    sequence: Tensor,
    weight: Tensor,
    back: Tensor,
    steps: int,
    slots: int,
    sizes: list[int],
    groups: int,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> Tensor:
    """What the windows give of one component ``[rows, B, *padded, C]``: ``[T, B * positions, O]``.

    ``sizes`` are, of each axis, the padded size, kernel, stride and dilation.
    """
    windows, channels, outputs = _sized(sizes, groups), sequence.shape[-1], len(weight) * groups
    y = _like_windows(sequence, weight, back, steps, slots, sizes, groups).zero_()
    for part in _parts(windows, outputs, channels):
        rows = sequence[part.seen].flatten(1, -2)
        tap, here = (t[part.taps].contiguous() for t in (weight, back))
        if part.alone:
            y[..., part.outputs] += _read_alone(rows, tap, here, steps, slots)
        else:
            way = steps, slots, strategy, digits, backend
            y[..., part.outputs] += project_component(rows.contiguous(), None, tap, here, [], *way)
    return y


def _like_windows_backward(dy, sequence, weight, back, *others):  # type: ignore[no-untyped-def]
    *_, wants_sequence, wants_weight = others
    found = [torch.empty_like(sequence)] if wants_sequence else []
    return [*found, *([torch.empty_like(weight)] if wants_weight else [])]


@operator(fake=_like_windows_backward)
def shift_windows_backward(
    dy: Tensor,
    sequence: Tensor,
    weight: Tensor,
    back: Tensor,
    slots: int,
    sizes: list[int],
    groups: int,
    strategy: str,
    digits: str | None,
    backend: str | None,
    wants_sequence: bool,
    wants_weight: bool,
) -> list[Tensor]:
    """``[*dsequence, *dweight]``, as far as they are wanted."""
    windows, channels, outputs = _sized(sizes, groups), sequence.shape[-1], len(weight) * groups
    dsequence = torch.zeros_like(sequence, dtype=weight.dtype) if wants_sequence else None
    dweight = torch.empty_like(weight) if wants_weight else None
    for part in _parts(windows, outputs, channels):
        seen = sequence[part.seen]
        rows = seen.flatten(1, -2).contiguous() if wants_weight else None
        tap = weight[part.taps].contiguous() if wants_sequence else None
        own, here = dy[..., part.outputs].contiguous(), back[part.taps].contiguous()
        if part.alone:
            found = _read_alone_backward(own, rows, tap, here, len(sequence), slots)
        else:
            way = len(sequence), slots, weight.dtype, strategy, digits, backend
            found = project_component_backward(own, rows, None, tap, here, [], *way)
        if dsequence is not None:
            dsequence[part.seen] += found[0].view(seen.shape)
        if dweight is not None:
            dweight[part.taps] = found[-1]
    both = None if dsequence is None else dsequence.to(sequence.dtype), dweight
    return [gradient for gradient in both if gradient is not None]


class _ShiftWindows(torch.autograd.Function):
    """Of the sequence and the weight. Each pass looks the windows up; none of them is kept."""

    @staticmethod
    def forward(
        ctx: Any, way: Way, size: tuple[Any, ...], back: Tensor, sequence: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.way, ctx.size = way, size
        keep(ctx, (back, sequence, weight))
        return shift_windows(sequence, weight, back, *size, *way)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ((back, sequence, weight),) = kept(ctx)
        wanted = ctx.needs_input_grad[3:]
        operands = (dy, sequence, weight, back, *ctx.size[1:], *ctx.way, *wanted)
        found = iter(shift_windows_backward(*operands))
        return None, None, None, *[next(found) if want else None for want in wanted]


def _by_shifts(
    sequences: Sequence[Tensor],
    taps: Taps,
    steps: int,
    slots: int,
    windows: Windows,
    backend: str | None,
) -> Tensor:
    """Sums of shifted rows, those that one place of the kernel sees at a time."""
    way = way_of("shift", taps.back.device, backend)
    size = steps, slots, *_numbers(windows)
    parts = []
    for sequence, weight in zip(sequences, taps.weights, strict=True):
        padded = _padded(sequence, windows)
        if chained(padded, weight):
            parts.append(_ShiftWindows.apply(way, size, taps.back, padded, weight))
        else:
            parts.append(shift_windows(padded, weight, taps.back, *size, *way))
    y = total(parts).unflatten(1, (-1, *windows.positions))
    return y.movedim(-1, 2)


# -- the spread -------------------------------------------------------------------------------


class SpreadWindows(NamedTuple):
    """Delays that get the gradient of :mod:`tritonsyn.ops.spread`, and their connections."""

    delay: Tensor
    """``[O / groups, C * places]``, or ``[1, C]`` where channels have the delays."""
    weight: Tensor
    """As the delays, or ``[O, C / groups, *kernel]`` where channels have these."""
    back: Tensor
    """As the delays, int32: whole steps."""
    settings: SpreadSettings
    windows: Windows

    def projected(
        self, run: Run, project: Callable[[Run], tuple[Tensor, End]]
    ) -> tuple[Tensor, End]:
        """What ``project`` makes of the run, with the gradient of the delays."""
        settings = _SettingsOfWindows(self.settings, self.windows)
        return spread(run, project, settings, (self.delay, self.weight, self.back))


class _SettingsOfWindows(NamedTuple):
    """What the gradient is told here, and how it is summed over windows."""

    settings: SpreadSettings
    windows: Windows

    def gradient(
        self, dy: Tensor, delay: Tensor, weight: Tensor, back: Tensor, currents: Tensor
    ) -> Tensor:
        """That of the delays, of ``dy [T, B, O, *positions]``."""
        (settings, windows), dtype = self, compute_dtype(dy.dtype)
        slots = settings.slots
        slopes, weight = smoothed_slopes(currents.to(dtype), settings.width), weight.to(dtype)
        # A delay of 0 moves into the past.
        back, arriving = back.clamp(1, slots - 1), dy.to(dtype)
        if weight.ndim > 2:
            arriving = _to_inputs(arriving.flatten(0, 1), weight, windows)
            rows = arriving.unflatten(0, dy.shape[:2]).flatten(1, -2)
            found = delayed_product(rows, slopes, back[0], slots).unsqueeze(0)
        else:
            rows = arriving.flatten(3).movedim(2, -1).flatten(1, 2)
            way = way_of("shift", dy.device, settings.backend)
            operands = _padded(slopes, windows), weight, back, slots, *_numbers(windows), *way
            (dweight,) = shift_windows_backward(rows, *operands, False, True)
            found = weight * dweight
        return settings.bounded(found, delay)


def _to_inputs(dy: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """The gradient ``[N, *size, C]`` of the input of a convolution, of that of its output."""
    axes = zip(windows.positions, windows.stride, windows.span, windows.padded, strict=True)
    beyond = [padded - ((n - 1) * stride + span) for n, stride, span, padded in axes]
    how: dict[str, Any] = {"output_padding": beyond, "groups": windows.groups}
    with without_autocast(dy.device):
        transposed = F.conv_transpose1d if len(beyond) == 1 else F.conv_transpose2d
        dx = transposed(dy, weight, stride=windows.stride, dilation=windows.dilation, **how)
    for axis, (size, (before, _)) in enumerate(zip(windows.size, windows.padding, strict=True)):
        dx = dx.narrow(2 + axis, before, size)
    return dx.movedim(1, -1)
