"""Plain values that all packages share: read rules, dynamics, packed spikes, slots."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Slot = int | Tensor
"""A slot of a record: a number, or a 0-d int64 tensor on the record's device."""

RECORD_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that records of currents are kept in."""

READ_MODES = ("previous", "nearest", "next", "linear", "expdecay", "alpha")
"""Modes of a :class:`ReadRule`; ``alpha`` reads a pair, the rise and the current."""

STRATEGIES = ("auto", "shift", "gemm", "bits", "events")
"""Ways to compute a delayed projection over a sequence."""


class ReadRule(NamedTuple):
    r"""How times before the present become values of a record.

    Let *older* and *newer* be the observations before and after the time, :math:`a` the time from
    the older one to the time asked for, and :math:`\tau` the time constant of the record.

    Attributes:
        mode: the value between observations: ``"previous"`` (older), ``"next"`` (newer),
            ``"nearest"`` (the closer one; older in the middle), ``"linear"`` (on the line between
            both), ``"expdecay"`` (:math:`\mathrm{older}\,e^{-a / \tau}`), or ``"alpha"``, which
            reads a pair, the rise and the current: :math:`(\mathrm{current} + (a /
            \tau)\,\mathrm{rise})\,e^{-a / \tau}`.
        step: time between observations, > 0, in the unit of the times.
        limit: longest time, >= 0; times are bounded to ``[0, limit]``.
        tolerance: a time this close to an observation reads it, >= 0; at least four units in the
            last place of the time.
        overbound: value outside of ``[0, limit]``; None for the value at the limit.
    """

    mode: str
    step: float
    limit: float
    tolerance: float = 0.0
    overbound: float | None = None

    @property
    def flat(self) -> bool:
        """Whether values do not change with the time, as far as derivatives go."""
        return self.mode in ("previous", "nearest", "next")


class Reading(NamedTuple):
    """A delayed read of one record, or of a pair: all that it needs but the records."""

    sel: Tensor
    """The times ``[1 or B, N, D]``; or of each step ``[steps, 1 or B, N, D]``."""
    rates: Sequence[Tensor | None]
    """Of each component the step over its time constant, 0-d or ``[N]``; None where none counts."""
    pointers: Sequence[Slot]
    """The slot of each record that is written next."""
    rule: ReadRule
    steps: int = 1
    """Above 1, each record is a sequence ``[K - 1 + steps, B, N]``, oldest first, that is read at
    every step; then pointers are 0."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic is float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The input in the dtype of the arithmetic."""
    if x.dtype == torch.bool:
        # PyTorch converts the same bits several times faster as uint8 than as bool.
        x = x.view(torch.uint8)
    return x if x.dtype == dtype else x.to(dtype)


def after_zeros(sequence: Tensor, rows: int) -> Tensor:
    """The sequence, made that long by zeros before it."""
    missing = rows - sequence.shape[0]
    if not missing:
        return sequence
    return torch.cat((sequence.new_zeros(missing, *sequence.shape[1:]), sequence))


def highest_rate(dtype: torch.dtype) -> float:
    """The highest step over time constant that arithmetic of this dtype takes.

    Its square, which the alpha function and derivatives take, leaves half of the exponents to
    charges and sums. A decay is 0 long before.
    """
    return torch.finfo(dtype).max ** 0.25


class Dynamics(NamedTuple):
    """How the states of a synapse change in a step; all of its operations share this value.

    One state decays and takes the input: ``C' = decay * C + gain * x``; it is the current. Two
    states with a decay each both take the input; the current is the first minus the second. Two
    *coupled* states share one decay; the first, A, takes the input and feeds the second, the
    current: ``A' = decay * A + gain * x`` and ``I' = decay * (I + coupling * A)``.
    """

    gain: Tensor
    """What a unit input adds to each state that takes it: 0-d, or one value per synapse."""
    decays: tuple[Tensor, ...]
    """Factor of each state in one step; coupled states share the only one."""
    coupling: Tensor | None = None
    """Part of the first state that joins the second before that decays."""

    @property
    def states(self) -> int:
        """The number of states, one or two."""
        return len(self.decays) + (self.coupling is not None)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """Gain, decays and, if there is one, coupling."""
        return (self.gain, *self.decays, *(() if self.coupling is None else (self.coupling,)))

    @property
    def mix(self) -> tuple[float, ...]:
        """The weight of each state in the current."""
        if self.coupling is not None:
            return 0.0, 1.0
        return (1.0, -1.0)[: len(self.decays)]

    @property
    def inputs(self) -> int:
        """The number of states that take the input, from the first on."""
        return len(self.decays)

    @classmethod
    def of(cls, constants: Sequence[Tensor], coupled: bool) -> "Dynamics":
        """The dynamics of these :attr:`constants`, the last of which may be a coupling."""
        gain, *decays = constants
        coupling = decays[-1] if coupled else None
        return cls(gain, tuple(decays[:-1] if coupled else decays), coupling)

    def decay(self, state: int) -> Tensor:
        """The decay of a state."""
        return self.decays[min(state, len(self.decays) - 1)]

    def alone(self, state: int) -> "Dynamics":
        """The dynamics of which this state is the current."""
        if self.coupling is not None and state == 1:
            return self
        return Dynamics(self.gain, (self.decay(state),))

    def current_(self, states: Sequence[Tensor]) -> Tensor:
        """The current that the states make, in the memory of one of them."""
        if self.coupling is not None:
            return states[1]
        return states[0] if len(states) == 1 else states[0].sub_(states[1])

    def current(self, states: Sequence[Tensor]) -> Tensor:
        """The same; the difference of two in new memory."""
        return states[0] - states[1] if self.inputs == 2 else self.current_(states)


class Ring(NamedTuple):
    """The records of a group of synapses, and the slot that each writes next.

    Attributes:
        components: the record of each state: ``[K, B, *shape]``, floating.
        pointers: for each of these records the slot that is written next.
        spikes: the record of the spikes, ``[K, B, *shape]``, bool.
        spike_pointer: its slot that is written next.
        arrivals: an int32 zero, with which a step or a scan counts its programs to advance pointers
            that are kept on the device; None leaves them, as numbers are left.
        carries: the newest value of each state, ``[B, *shape]``, contiguous, in the dtype of the
            arithmetic: a step starts from these and writes them. They keep what records in half
            precision round: without them a step that changes a state by less than its rounding is
            lost, and a long time constant never decays. None where the records hold all.
    """

    components: Sequence[Tensor]
    pointers: Sequence[Slot]
    spikes: Tensor
    spike_pointer: Slot
    arrivals: Tensor | None = None
    carries: Sequence[Tensor] | None = None


# A duration this close to a whole number of steps is that number (relative to one step).
_WHOLE = 1e-6


def record_size(step_time: float, duration: float, inclusive: bool) -> int:
    """Slots of a record: ``ceil(duration / step_time)``, one more where that is included."""
    steps = duration / step_time
    if not steps < 2**31:
        raise ValueError(
            f"a delay or duration of {duration} is {steps:g} steps of {step_time}, but a record "
            "holds fewer than 2**31"
        )
    return max(math.ceil(_snapped(steps)) + inclusive, 1)


def whole_steps(step_time: float, duration: float) -> int:
    """Steps that fit into a duration."""
    return math.floor(_snapped(duration / step_time))


def _snapped(steps: float) -> float:
    return round(steps) if abs(steps - round(steps)) <= _WHOLE else steps


WORD = 32
"""Spikes in a word."""


class PackedSpikes(NamedTuple):
    """Spikes ``[T, B, *shape]`` as bits; made by :func:`tritonsyn.functional.pack_spikes`.

    Attributes:
        words: ``[T, B, ceil(N / 32)]`` int32: bit ``n % 32`` of word ``n // 32`` is the spike of
            synapse n.
        shape: ``(T, B, *shape)``, of the spikes.
    """

    words: Tensor
    shape: tuple[int, ...]

    @property
    def synapses(self) -> int:
        """Number of synapses N in a row of the batch."""
        return math.prod(self.shape[2:])

    @property
    def device(self) -> torch.device:
        """Device of the words."""
        return self.words.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of a spike: ``torch.bool``."""
        return torch.bool

    def dense(self) -> Tensor:
        """The spikes, one value for each step and synapse.

        Returns:
            Bool ``[T, B, *shape]``.
        """
        return unpack_bits(self.words, self.synapses).view(self.shape)


def data_of(x: "Tensor | PackedSpikes | SpikeTrains") -> Tensor:
    """Where an input is kept: the words of spikes as bits."""
    return x if isinstance(x, Tensor) else x.words


def dense(x: Tensor | PackedSpikes) -> Tensor:
    """An input as one value per step and synapse."""
    return x.dense() if isinstance(x, PackedSpikes) else x


def words_per_row(synapses: int) -> int:
    """Words that hold the spikes of one row of the batch."""
    return -(-synapses // WORD)


def unpack_bits(words: Tensor, synapses: int) -> Tensor:
    """The spikes in words ``[..., ceil(N / 32)]``: bool ``[..., N]``."""
    # The eight spikes of each byte are looked up at once.
    octet, place = (torch.arange(n, dtype=torch.uint8, device=words.device) for n in (256, 8))
    spikes = ((octet.unsqueeze(-1) >> place) & 1).view(torch.int64).flatten()
    octets = words.contiguous().view(torch.uint8)
    bits = spikes.index_select(0, octets.flatten().int()).view(octets.shape).view(torch.bool)
    return bits[..., :synapses].contiguous()


class SpikeTrains(NamedTuple):
    """Spikes ``[T, B, N]`` as bits over time, after zeros."""

    words: Tensor
    """``[B, N, width]`` int32, flat, and two more: step t is bit ``t % 32`` of word ``lead + t //
    32``; all other bits are zero, those of the two words at the end included."""
    shape: tuple[int, ...]
    """``(T, B, N)``."""

    @staticmethod
    def lead(slots: int) -> int:
        """Words before the first step, for reads up to ``slots - 1`` steps back.

        Two at the most: what is before them is zero too, and need not be read.
        """
        return min(words_per_row(slots - 1), 2)

    @classmethod
    def width(cls, steps: int, slots: int) -> int:
        """Words of an input and row of the batch."""
        return cls.lead(slots) + words_per_row(steps)

    @classmethod
    def size(cls, shape: Sequence[int], slots: int) -> int:
        """All words. Two follow the last, so that 64 steps from any place on are in memory."""
        steps, batch, synapses = shape
        return batch * synapses * cls.width(steps, slots) + 2


class Lines(NamedTuple):
    """A sequence ``[rows, B, N]`` with the batch in lines, on which kernels add shifted rows."""

    memory: Tensor
    """The lines, and beyond them room for the last tile of a kernel."""
    size: tuple[int, int, int, int]
    """``(N, groups, lead + rows, width)``: element ``[n, g, lead + t, i]`` is that of row
    ``width * g + i`` of the batch, zero beyond B and in the ``lead`` rows before the first."""
    batch: int
    """B."""

    @property
    def strides(self) -> tuple[int, int]:
        """From a synapse to the next, and from a group of samples to the next."""
        _, groups, rows, width = self.size
        return groups * rows * width, rows * width

    @property
    def view(self) -> Tensor:
        """The lines in their size."""
        return self.memory[: math.prod(self.size)].view(self.size)


class Rows(NamedTuple):
    """A sequence of rows ``[B, N]``, of which some that follow each other are read together."""

    memory: Tensor
    """``[rows, N, B]``."""
    rows: Sequence[Tensor]
    """Each of them."""
    windows: Sequence[Tensor]
    """From each row on so many, ``[width * N, B]``."""


class Links(NamedTuple):
    """Which inputs each output reads, where it does not read all: n connections, int64.

    Numbers of connections are in the order of their outputs.
    """

    places: Tensor
    """Of each connection in a flat ``[O, I]``, ascending."""
    outputs: Tensor
    """Its output."""
    inputs: Tensor
    """Its input."""
    starts: Tensor
    """``[O + 1]``: the first connection of each output, and n."""
    order: Tensor
    """The connections in the order of their inputs."""
    readers: Tensor
    """Their outputs in that order."""
    input_starts: Tensor
    """``[I + 1]``: where those of each input start in that order, and n."""

    @classmethod
    def of(cls, mask: Tensor) -> "Links":
        """Those of a bool mask ``[O, I]``; waits for the device."""
        outputs, inputs = mask.nonzero(as_tuple=True)
        order = inputs.argsort(stable=True)
        starts = (
            torch.searchsorted(found, torch.arange(size + 1, device=mask.device))
            for found, size in zip((outputs, inputs[order]), mask.shape, strict=True)
        )
        places, readers = outputs * mask.shape[1] + inputs, outputs[order]
        return cls(places, outputs, inputs, next(starts), order, readers, next(starts))

    @property
    def size(self) -> tuple[int, int]:
        """``(O, I)``."""
        return self.starts.shape[0] - 1, self.input_starts.shape[0] - 1

    @property
    def density(self) -> float:
        """The part of all connections that there are, one of them at least."""
        return max(self.places.shape[0], 1) / math.prod(self.size)

    def taken(self, dense: Tensor) -> Tensor:
        """Of ``[O, I]``, or of one row or column for all, what is at the connections, ``[n]``."""
        return dense.expand(self.size).reshape(-1).index_select(0, self.places)

    def spread(self, values: Tensor) -> Tensor:
        """The inverse: ``[O, I]`` with zeros where there is no connection."""
        dense = values.new_zeros(math.prod(self.size))
        return dense.index_copy(0, self.places, values).view(self.size)


class Connections(NamedTuple):
    """Weights and delays of connections, prepared for many shifted sums of one tape."""

    table: Any
    """As the implementation reads them."""
    weight: Tensor
    """``[O, I]``, or of links ``[n]``, in the dtype of the arithmetic."""
    back: Tensor
    """The same, int32: steps from ``least`` to ``slots - 1``."""
    slots: int
    """K."""
    least: int
    adjoint: bool
    """Whether sums go over the outputs, of what is later."""


_EXPONENT_BITS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF << 52),
}


class Located(NamedTuple):
    """Where times lie among the observations."""

    older: Tensor
    """Older neighbour in whole steps, NaN for a NaN time."""
    fraction: Tensor
    """Steps from the older neighbour to the time, in [0, 1)."""
    inside: Tensor | None
    """Within tolerance of the bounds; None: all are."""
    within: Tensor | None
    """Between the bounds, which are included; None: all are."""

    @property
    def valid(self) -> bool:
        """Whether no time can be NaN."""
        return self.within is None


def is_distributed(value: object) -> bool:
    """Whether it is a ``DTensor``, without importing what defines it."""
    if value.__class__ is Tensor or value.__class__ is nn.Parameter:
        return False
    return isinstance(value, Tensor) and hasattr(value, "placements")


def readable(tensor: Tensor) -> bool:
    """Whether the host can branch on the values: a GPU would make it wait, a graph cannot."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _all_within(time: Tensor, limit: float) -> bool:
    """Whether no time needs bounding; asked only where the answer costs no wait."""
    if time.numel() == 0 or not readable(time):
        return False
    low, high = torch.aminmax(time)
    return 0.0 <= low.item() and high.item() <= limit


def locate(sel: Tensor, rule: ReadRule, slots: int) -> Located:
    """Older neighbour, fraction and bounds of each time; every operation rounds as in IEEE 754."""
    time = sel.to(compute_dtype(sel.dtype))
    inside = within = None
    bounded = time
    plain = _all_within(time, rule.limit)
    if not plain:
        bounded = time.clamp(0.0, rule.limit)
        within = time == bounded
    tolerance = _tolerance(bounded, torch.finfo(sel.dtype).eps, rule)
    if not plain:
        inside = (time - bounded).abs_() <= tolerance
    # Divided by a tensor, because a GPU multiplies by the reciprocal of a number.
    step = torch.full((), rule.step, dtype=time.dtype, device=time.device)
    steps = bounded if rule.step == 1.0 else bounded / step
    nearest = steps.round()
    observed = nearest if rule.step == 1.0 else nearest * rule.step
    hit = (observed - bounded).abs_() <= tolerance
    steps = torch.where(hit, nearest, steps)
    if rule.step != 1.0 or rule.limit > slots - 1:
        steps.clamp_(max=slots - 1)
    older = steps.ceil()
    return Located(older, torch.sub(older, steps, out=steps), inside, within)


def _tolerance(bounded: Tensor, epsilon: float, rule: ReadRule) -> Tensor:
    """The larger of the rule's tolerance and four units in the last place at the time."""
    integer, mask = _EXPONENT_BITS[bounded.dtype]
    unit = bounded.clamp(min=rule.step).view(integer).bitwise_and_(mask).view(bounded.dtype)
    unit.mul_(4.0 * epsilon)
    return unit.clamp_(min=rule.tolerance) if rule.tolerance > 0 else unit
