"""Exponential scans of whole sequences as differentiable operations."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..checks import check_floating, check_packed, check_sequence, finite, record_dtype
from ..values import Dynamics, PackedSpikes, compute_dtype, unpack_bits, words_per_row
from . import registered
from .common import as_tensor, chained, first_order, implementation, without_graph
from .operator import operator

Coefficient = float | torch.Tensor


Tensors = list[torch.Tensor]


def _row(x: torch.Tensor, shape: Sequence[int] | None) -> tuple[int, int]:
    """``(B, N)`` of values or bits."""
    if shape is None:
        return x.shape[1], x.shape[2]
    return shape[1], PackedSpikes(x, tuple(shape)).synapses


def _empty_scan(x, shape, constants, coupled, initials, last, dtype, backend):  # type: ignore[no-untyped-def]
    row, carried = _row(x, shape), constants[0].dtype
    y = [] if dtype is None else [x.new_empty((x.shape[0], *row), dtype=dtype)]
    states = Dynamics.of(constants, coupled).states
    return [*y, *(x.new_empty((last, *row), dtype=carried) for _ in range(states))]


@operator(_empty_scan)
def scan_forward(
    x: torch.Tensor,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[torch.Tensor | None],
    last: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> Tensors:
    """``[*y, *tails]`` of a scan; ``shape`` is that of packed spikes, ``dtype`` that of ``y``."""
    module = implementation("scan", x.device, backend)
    dynamics = Dynamics.of(constants, coupled)
    y, tails = module.scan(_sequence(x, shape), dynamics, initials, last, dtype)
    return [*([] if y is None else [y]), *tails]


def _empty_scan_backward(  # type: ignore[no-untyped-def]
    dy, dtails, x, shape, constants, coupled, initials, dx_dtype, want_initials, backend
):
    row, states = dy.shape[1:], Dynamics.of(constants, coupled).states
    dx = [] if dx_dtype is None else [dy.new_empty(dy.shape, dtype=dx_dtype)]
    dinitials = [constants[0].new_empty(row) for _ in range(states if want_initials else 0)]
    return [*dx, *dinitials, *(c.new_empty(c.shape) for c in constants if x is not None)]


@operator(_empty_scan_backward)
def scan_backward(
    dy: torch.Tensor,
    dtails: list[torch.Tensor | None],
    x: torch.Tensor | None,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[torch.Tensor | None],
    dx_dtype: torch.dtype | None,
    want_initials: bool,
    backend: str | None,
) -> Tensors:
    """``[*dx, *dinitials, *dconstants]``: the first only with a dtype, the last only with ``x``."""
    module = implementation("scan", dy.device, backend)
    sequence = None if x is None else _sequence(x, shape)
    dx, dinitials, dconstants = module.scan_backward(
        dy, dtails, sequence, Dynamics.of(constants, coupled), initials, dx_dtype, want_initials
    )
    totals = [d.sum(0) if c.ndim else d.sum() for d, c in zip(dconstants, constants, strict=False)]
    return [*([] if dx is None else [dx]), *dinitials, *totals]


class _Scan(torch.autograd.Function):
    """Of input, constants and initial states; the same in eager and in compiled code."""

    @staticmethod
    def forward(
        ctx: Any,
        coupled: bool,
        last: int,
        dtype: torch.dtype | None,
        shape: list[int] | None,
        backend: str | None,
        count: int,
        x: torch.Tensor,
        *tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        constants, initials = tensors[:count], tensors[count:]
        results = scan_forward(
            x, shape, list(constants), coupled, list(initials), last, dtype, backend
        )
        ctx.set_materialize_grads(False)
        ctx.coupled, ctx.shape, ctx.backend, ctx.count = coupled, shape, backend, count
        ctx.silent = dtype is None
        ctx.y_layout = (x.shape[0], *results[-1].shape[1:]), dtype or constants[0].dtype
        ctx.x_dtype = x.dtype
        # The input's gradient alone needs neither the input nor the initial states.
        ctx.learned = any(ctx.needs_input_grad[7 : 7 + count])
        saved = (x, *initials) if ctx.learned else (None, *(None for _ in initials))
        ctx.save_for_backward(*constants, *saved)
        return tuple(results)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        count = ctx.count
        constants, x, initials = (
            list(ctx.saved_tensors[:count]),
            ctx.saved_tensors[count],
            list(ctx.saved_tensors[count + 1 :]),
        )
        dy, dtails = (None, gradients) if ctx.silent else (gradients[0], gradients[1:])
        states = len(initials)
        if all(gradient is None for gradient in gradients):
            return (None,) * (7 + count + states)
        if dy is None:
            size, dtype = ctx.y_layout
            dy = constants[0].new_zeros(size, dtype=dtype)
        want_x, wanted = ctx.needs_input_grad[6], ctx.needs_input_grad[7 + count :]
        results = scan_backward(
            dy, list(dtails), x, ctx.shape, constants, ctx.coupled, initials,
            ctx.x_dtype if want_x else None, any(wanted), ctx.backend,
        )  # fmt: skip
        first = int(want_x)
        dinitials: list[torch.Tensor | None] = [None] * states
        if any(wanted):
            dinitials = [d if w else None for d, w in zip(results[first:], wanted, strict=False)]
            first += states
        dconstants = results[first:] if ctx.learned else [None] * count
        return (None,) * 6 + (results[0] if want_x else None, *dconstants, *dinitials)


def _sequence(x: torch.Tensor, shape: Sequence[int] | None) -> torch.Tensor | PackedSpikes:
    return x if shape is None else PackedSpikes(x, tuple(shape))


def scan(
    x: torch.Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[torch.Tensor | None],
    *,
    last: int = 1,
    dtype: torch.dtype,
    backend: str | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The states of a synapse over T steps.

    ``x [T, B, N]`` or packed; constants 0-d or ``[N]`` and ``initials [B, N]`` (None for rest), of
    each state, all in the arithmetic's dtype of ``dtype``. Returns the current ``[T, B, N]`` in
    ``dtype`` and the ``last`` values of each state. Differentiable to everything floating; for the
    gradient to ``x`` nothing of the size of ``x`` is kept.
    """
    y, *tails = _scan(x, dynamics, initials, last, dtype, backend)
    return y, tails


def last_values(
    x: torch.Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[torch.Tensor | None],
    *,
    last: int,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """The last values of :func:`scan`, which writes no currents for it."""
    return _scan(x, dynamics, initials, last, None, backend)


def _scan(
    x: torch.Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[torch.Tensor | None],
    last: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> list[torch.Tensor]:
    """``[*y, *tails]``, with currents only if these have a dtype."""
    packed = isinstance(x, PackedSpikes)
    data, shape = (x.words, list(x.shape)) if isinstance(x, PackedSpikes) else (x, None)
    constants, coupled = dynamics.constants, dynamics.coupling is not None
    if chained(None if packed else data, *constants, *initials):
        settings = (coupled, last, dtype, shape, backend, len(constants))
        return list(_Scan.apply(*settings, data, *constants, *initials))
    with without_graph():
        return scan_forward(
            data, shape, list(constants), coupled, list(initials), last, dtype, backend
        )


def sequence_scan(
    x: torch.Tensor | PackedSpikes,
    gain: Coefficient,
    decays: Sequence[Coefficient],
    initials: Sequence[torch.Tensor | None],
    *,
    ratio: Coefficient | None = None,
    dtype: torch.dtype | None,
    backend: str | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A scan of a sequence ``[T, ...]`` of any rank: ``(y, final component values)``.

    Coefficients broadcast to ``x.shape[1:]``; the last axes, which any of them spans, are the
    synapses, and the others the batch.
    """
    check_sequence(x)
    shape = tuple(x.shape)
    states = len(decays) + (ratio is not None)
    if not isinstance(initials, Sequence) or len(initials) != states:
        raise ValueError(f"initial must hold {states} tensors, but is {initials!r:.80}")
    for initial in initials:
        _check_initial(initial, shape, x.device)
    dtype = output_dtype(x, initials, dtype)
    acc = compute_dtype(dtype)
    given = [gain, *decays, *([] if ratio is None else [ratio])]
    inner = _synapse_axes(shape, given)
    if isinstance(x, PackedSpikes):
        # Words are of whole rows of the batch: coefficients that differ along it need the spikes.
        x, inner = (x, len(shape) - 2) if inner <= len(shape) - 2 else (unpack_spikes(x), inner)
    synapses = shape[len(shape) - inner :]
    batch, count = math.prod(shape[1 : len(shape) - inner]), math.prod(synapses)
    names = ("gain", "decay", "rise" if ratio is None else "ratio")
    coefficients = [
        coefficient(name, c, synapses, acc, x.device) for name, c in zip(names, given, strict=False)
    ]
    starts = [None if s is None else s.to(acc).reshape(batch, count) for s in initials]
    flat = x if isinstance(x, PackedSpikes) else x.reshape(shape[0], batch, count)
    last = min(shape[0], 1)
    dynamics = Dynamics.of(coefficients, ratio is not None)
    y, tails = scan(flat, dynamics, starts, last=last, dtype=dtype, backend=backend)
    if last:
        finals = [tail[-1].view(shape[1:]) for tail in tails]
    else:
        rest = torch.zeros((batch, count), dtype=acc, device=x.device)
        finals = [(rest if s is None else s.clone()).reshape(shape[1:]) for s in starts]
    return y.view(shape), finals


def output_dtype(
    x: torch.Tensor | PackedSpikes,
    initials: Sequence[torch.Tensor | None],
    dtype: torch.dtype | None,
) -> torch.dtype:
    """The dtype asked for, else that of a floating input or initial state, else the default."""
    sources = [*([] if isinstance(x, PackedSpikes) else [x]), *initials]
    floating = [s.dtype for s in sources if s is not None and s.is_floating_point()]
    return record_dtype(floating[0] if dtype is None and floating else dtype)


def _synapse_axes(shape: tuple[int, ...], coefficients: Sequence[Coefficient]) -> int:
    """How many of the last axes the coefficients span."""
    spans = [0]
    for value in coefficients:
        if isinstance(value, torch.Tensor) and value.numel() > 1:
            sizes = list(value.shape)
            while sizes[0] == 1:
                sizes.pop(0)
            spans.append(len(sizes))
    return min(max(spans), len(shape) - 1)


def coefficient(
    name: str,
    value: Coefficient,
    synapses: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """0-d, or ``[N]``."""
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.layout != torch.strided:
            raise TypeError(f"{name} must be dense and real, but is {value.dtype}, {value.layout}")
        if value.is_meta and device.type != "meta":
            raise ValueError(f"{name} is on meta, where tensors hold no values")
    else:
        finite(name, value)
    tensor = as_tensor(value, dtype, device)
    if tensor.numel() == 1:
        return tensor.reshape(())
    sizes = tuple(tensor.shape)
    try:
        fits = torch.broadcast_shapes(sizes, synapses)[-len(synapses) :] == synapses
        fits = fits and math.prod(torch.broadcast_shapes(sizes, synapses)) == math.prod(synapses)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {sizes}, which does not broadcast to {synapses}")
    return tensor.broadcast_to(torch.broadcast_shapes(sizes, synapses)).reshape(-1)


def _check_initial(
    initial: torch.Tensor | None, shape: tuple[int, ...], device: torch.device
) -> None:
    """An initial state is None, or floating and of the shape of a step."""
    if initial is None:
        return
    check_floating("the initial state", initial)
    if tuple(initial.shape) != shape[1:]:
        raise ValueError(
            f"the initial state has shape {tuple(initial.shape)}, but must have {shape[1:]}"
        )
    if initial.device != device:
        raise ValueError(f"the initial state is on {initial.device}, but the input is on {device}")


def pack_spikes(x: torch.Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes ``[T, B, *shape]`` (``x != 0``) as bits, 32 synapses a word."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, but is {x!r:.80}")
    if x.ndim < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, but must have (T, B, *shape)")
    shape = tuple(x.shape)
    rows = x.detach().reshape(shape[0] * shape[1], math.prod(shape[2:]))
    if torch.compiler.is_compiling():
        words = registered.pack_spikes(rows, backend)
    else:
        words = implementation("scan", x.device, backend).pack(rows)
    return PackedSpikes(words.view(*shape[:2], words_per_row(math.prod(shape[2:]))), shape)


def unpack_spikes(packed: PackedSpikes) -> torch.Tensor:
    """Inverse of :func:`pack_spikes`: bool ``[T, B, *shape]``."""
    if not isinstance(packed, PackedSpikes):
        raise TypeError(f"packed must be PackedSpikes, but is {packed!r:.80}")
    check_packed("packed", packed)
    return unpack_bits(packed.words, packed.synapses).view(packed.shape)
