"""The synapses and the delayed layer in float64, written down as their formulas read.

Independent of tritonsyn: nothing of it is imported, and nothing is a ring buffer. A synapse keeps
lists of all its observations since it was at rest; what lies before them is zero.

**Bounds.** Every number is kept in three lanes, along a first axis: the exact value; the sum of the
sizes of the terms that it is made of; and the same sum with every rounding on the way at its worst,
each a factor ``1 + unit``. Every result here is a sum of products, so whoever computes it with
these roundings, in whatever order, errs at most by the third lane minus the second. Gradients are
taken of all lanes at once, with slopes that count by their size in the second and third, so they
come with their bound too. ``unit`` is a whole unit in the last place, twice the rounding of one
operation: an implementation may err twice as much as the plain formula in its dtype can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

SIGNS = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
FINEST = 2.0**-40
"""The smallest unit: of float64 too, whose own the lanes, which are float64, could not show."""
CARRIES = False
"""Whether steps in half precision carry float32 from each to the next, as scans do."""
GAIN_OF_ROUNDED_DECAYS = False
"""Whether the gain of the double synapse may be that of the time constants for which its rounded
decays stand, so that the charge of a spike is right although its components cancel."""


def signs(x: Tensor) -> Tensor:
    return SIGNS.view(3, *[1] * (x.dim() - 1))


def lanes(x: Tensor) -> Tensor:
    """A number that is exact: both sizes are its own."""
    x = x.detach().double()
    return torch.stack((x, x.abs(), x.abs()))


def minus(a: Tensor, b: Tensor) -> Tensor:
    """The difference; its sizes add."""
    return a + signs(b) * b


@cache
def in_last_lane(value: float, last: float, dim: int) -> Tensor:
    """``value`` in the first two lanes, ``last`` in the third."""
    return torch.tensor([value, value, last], dtype=torch.float64).view(3, *[1] * (dim - 1))


def worse(x: Tensor, error: Tensor | float, floor: float = 0.0) -> Tensor:
    """``x`` with this much relative error more, and ``floor`` as much as subnormals lose."""
    if isinstance(error, Tensor):
        one = torch.ones_like(error)
        x = x * torch.stack((one, one, 1 + error))
    else:
        x = x * in_last_lane(1.0, 1.0 + error, x.dim())
    return x + in_last_lane(0.0, floor, x.dim()) if floor else x


def shifted(base: Tensor, x: Tensor) -> Tensor:
    """``base``, with the slope -1 to ``x``, which in the sizes is 1."""
    return base + signs(x) * (x - x.detach())


def inverse(x: Tensor) -> Tensor:
    """One over a number that has no other terms than itself."""
    return shifted(x.detach(), x) / x.detach().square()


def decayed(rate: Tensor, unit: float) -> Tensor:
    """``exp(-rate)``: its relative error is the error of the rate, and of the function itself.

    A subnormal decay has no more than the digits above the smallest.
    """
    error = (rate[2] - rate[1]).detach() + unit * (2 + 2 * rate[0].detach())
    base, floor = -rate[0].detach(), smallest(torch.float32) if unit > FINEST else 0.0
    return worse(torch.exp(shifted(base.expand(3, *base.shape), rate)), error, floor)


@dataclass
class Given:
    """A tensor of the program."""

    tensor: Tensor
    lanes: Tensor

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.lanes = lanes(tensor).requires_grad_(tensor.requires_grad)

    def assign(self, tensor: Tensor) -> None:
        tensor = tensor.detach().to(self.tensor.dtype).reshape(self.tensor.shape)
        self.__init__(tensor.requires_grad_(self.tensor.requires_grad))

    def __getitem__(self, index: Any) -> "Given":
        part = Given(self.tensor[index].detach())
        part.lanes = self.lanes[:, index]
        return part


@dataclass
class Expected:
    """A result: the lanes that it is, or is the gradient of, and what is allowed on top."""

    lanes: Tensor
    dtype: torch.dtype
    extra: Tensor | float = 0.0

    def bound(self) -> Tensor:
        return (self.lanes[2] - self.lanes[1]).detach() + self.extra


def unit_of(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).eps, FINEST)


def smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def last_place(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place of this dtype at positive values."""
    return torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(x))


class Record:
    """The view of one list of observations that the program reads."""

    def __init__(self, synapse: "Synapse", name: str) -> None:
        self.synapse, self.name = synapse, name

    @property
    def recordsz(self) -> int:
        return self.synapse.slots

    def read(self, offset: int = 1) -> Any:
        return self._result(self.synapse.observed(self.name, offset or self.recordsz))

    def peek(self) -> Any:
        return self.read(1)

    def readrange(self, length: int, offset: int = 1, forward: bool = False) -> Any:
        first = offset if forward else offset + length - 1
        return self._result(self._range(first, length, -1))

    def history(self, length: int) -> Any:
        return self._result(self._range(length, length, 0 if self.name == "spike" else 1))

    def _range(self, first: int, length: int, axis: int) -> Tensor:
        offsets = range(first, first - length, -1)
        return torch.stack([self.synapse.observed(self.name, o) for o in offsets], axis)

    def _result(self, value: Tensor) -> Any:
        return value if self.name == "spike" else Expected(value, self.synapse.dtype)


@dataclass
class Places:
    """Where times lie between the observations of a record."""

    older: Tensor
    newer: Tensor
    since: Tensor
    """Time since the older observation, in lanes, with its slope to the time asked for."""
    fraction: Tensor
    outside: Tensor
    nan: Tensor


def clearing(name: str) -> Any:
    """A property, kept under this name, that clears the state when it is set."""

    def change(owner: Any, value: Any) -> None:
        setattr(owner, name, value)
        owner.clear()

    return property(lambda owner: getattr(owner, name), change)


class Synapse:
    """What all synapses share. The properties and methods have the names of tritonsyn's."""

    constants: ClassVar[tuple[str, ...]]
    components: ClassVar[tuple[str, ...]]

    def __init__(
        self, shape: Sequence[int], step_time: float, *, delay: float = 0.0,
        spike_interp_mode: str = "previous", interp_tol: float = 0.0,
        current_overbound: float | None = 0.0, spike_overbound: bool | None = False,
        batch_size: int = 1, inplace: bool = False, dtype: torch.dtype = torch.float32,
        **constants: Any,
    ) -> None:  # fmt: skip
        self.shape, self._dt, self._delay = tuple(shape), step_time, delay
        self.mode, self.tolerance = spike_interp_mode, interp_tol
        self.current_overbound, self.spike_overbound = current_overbound, spike_overbound
        self._batch, self.inplace, self.dtype = batch_size, inplace, dtype
        self.unit = unit_of(torch.promote_types(dtype, torch.float32))
        for name in self.constants:
            setattr(self, name, constants[name])
        self.recorded: list[Tensor] = []
        self.clear()

    @classmethod
    def partialconstructor(cls, *physics: Any) -> Any:
        options = ("spike_interp_mode", "interp_tol", "current_overbound", "spike_overbound")
        named = dict(zip((*cls.constants, *options, "inplace"), physics, strict=False))
        return lambda shape, step_time, delay, batch_size, dtype: cls(
            shape, step_time, delay=delay, batch_size=batch_size, dtype=dtype, **named
        )

    # Constants, in lanes that broadcast against [B, *shape].

    def constant(self, name: str) -> Tensor:
        value = getattr(self, name)
        if not isinstance(value, Given):
            value = Given(torch.tensor(value, dtype=torch.float64))
        size = value.lanes.shape[1:]
        return value.lanes.reshape(3, *[1] * (1 + len(self.shape) - len(size)), *size)

    def gain(self) -> Tensor:
        gain = self.constant("spike_charge") * inverse(self.constant("time_constant"))
        return worse(gain, 3 * self.unit)

    def tau(self, component: str) -> Tensor:
        return self.constant("time_constant")

    def decay(self, component: str) -> Tensor:
        return decayed(self.dt * inverse(self.tau(component)), self.unit)

    def coefficients(self) -> dict[str, Tensor]:
        return {"gain": self.gain(), **{n: self.decay(n) for n in self.components}}

    # State.

    def clear(self, mask: Given | None = None, **_: Any) -> None:
        if mask is None:
            self.past: dict[str, list[Tensor]] = {n: [] for n in (*self.components, "spike")}
            self.carry: dict[str, Tensor] = {}
            return
        keep = ~mask.tensor.view(-1, *[1] * len(self.shape))
        for past in self.past.values():
            past[:] = [torch.where(keep, p, torch.zeros_like(p)) for p in past]
        self.carry = {n: torch.where(keep, c, 0.0) for n, c in self.carry.items()}

    def detach_state(self) -> None:
        for past in self.past.values():
            past[:] = [p.detach() for p in past]
        self.carry = {n: c.detach() for n, c in self.carry.items()}

    def observed(self, name: str, offset: int) -> Tensor:
        past = self.past[name]
        if offset <= len(past):
            return past[-offset]
        if name == "spike":
            return torch.zeros(self.batchsz, *self.shape, dtype=torch.bool)
        return torch.zeros(3, self.batchsz, *self.shape, dtype=torch.float64)

    def stored(self, x: Tensor) -> Tensor:
        return worse(x, unit_of(self.dtype), smallest(self.dtype))

    def assign(self, name: str, value: Given) -> None:
        """Replaces the newest observation."""
        past = self.past[name]
        new = value.tensor.clone() if name == "spike" else self.stored(value.lanes)
        if not torch.is_grad_enabled() or self.inplace:
            past[:], new = [p.detach() for p in past], new.detach()
        if not past:
            for other in self.past:
                self.past[other].append(self.observed(other, 1))
        past[-1] = new
        self.carry.pop(name, None)
        if name != "spike":
            self.recorded.append(new)

    def __getstate__(self) -> dict[str, Any]:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.past, copied.recorded = {n: list(p) for n, p in self.past.items()}, []
        copied.detach_state()
        return copied.__dict__

    def state_dict(self) -> dict[str, Any]:
        tensors = {n: getattr(self, n) for n in self.constants}
        state = {n: c.tensor.detach().clone() for n, c in tensors.items() if isinstance(c, Given)}
        return {**state, "past": self.__getstate__()["past"], "batch": self.batchsz}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.constants:
            if name in state:
                getattr(self, name).assign(state[name])
        self._batch = state["batch"]
        self.past = {n: [p.clone() for p in past] for n, past in state["past"].items()}
        self.carry = {}

    # Steps.

    def following(
        self, last: dict[str, Tensor], driven: Tensor, coefficients: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The components after a step, without rounding."""
        return {n: last[n] * coefficients[n] + driven for n in self.components}

    def step(self, x: Given, coefficients: dict[str, Tensor]) -> None:
        if x.tensor.shape[0] != self.batchsz:
            assert not any(self.past.values()), "the batch changes, and the state is not at rest"
            self._batch = x.tensor.shape[0]
        last = {n: self.carry.get(n, self.observed(n, 1)) for n in self.components}
        after = self.following(last, coefficients["gain"] * x.lanes, coefficients)
        for name, value in after.items():
            self.carry[name] = worse(value, 3 * self.unit)
            self.past[name].append(self.stored(self.carry[name]))
            self.recorded.append(self.past[name][-1])
        self.past["spike"].append(x.tensor.detach() != 0)
        if not torch.is_grad_enabled() or self.inplace:
            self.detach_state()

    def settle(self) -> None:
        """After a call: what the next one continues from."""
        if not CARRIES:
            self.carry = {}

    def present(self) -> Tensor:
        return self.observed("current", 1)

    def __call__(self, x: Given) -> Expected:
        if x.tensor.dim() == 2 + len(self.shape):
            return self.scan(x)
        self.step(x, self.coefficients())
        self.settle()
        return Expected(self.present(), self.dtype)

    def sequence(
        self, x: Given, *results: Any, lengths: Sequence[int] | None = None
    ) -> list[Expected]:
        """Steps through ``x``; what each function of the state gives after each of them.

        After the end of a sample that is 0, and its state is then that of its end.
        """
        rows: list[list[Tensor]] = []
        coefficients, moments = self.coefficients(), [self.moment()]
        for t in range(x.tensor.shape[0]):
            self.step(x[t], coefficients)
            found = [result() for result in results]
            if lengths is not None:
                moments.append(self.moment())
                kept = torch.tensor([t < length for length in lengths])
                found = [torch.where(kept.view(-1, *[1] * (r.dim() - 2)), r, 0.0) for r in found]
            rows.append(found)
        if lengths is not None and len(moments) > 1:
            self.end(moments, lengths)
        self.settle()
        if not rows:
            return [Expected(torch.zeros(3, 0, *r().shape[1:]), self.dtype) for r in results]
        return [Expected(torch.stack(r, 1), self.dtype) for r in zip(*rows, strict=True)]

    def moment(self) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """The past, and what goes on from it, as they are now."""
        return {n: list(past) for n, past in self.past.items()}, dict(self.carry)

    def end(self, moments: list[Any], lengths: Sequence[int]) -> None:
        """The state of each sample after so many steps."""
        axes = {n: 0 if n == "spike" else 1 for n in self.past}
        offsets = {(n, o): [] for n in axes for o in range(self.slots, 0, -1)}
        carries = {n: [] for n in self.components}
        for sample, steps in enumerate(lengths):
            self.past, self.carry = moments[steps]
            for (name, offset), parts in offsets.items():
                parts.append(self.observed(name, offset).select(axes[name], sample))
            for name, parts in carries.items():
                parts.append(self.carry.get(name, self.observed(name, 1)).select(1, sample))
        self.past = {n: [] for n in axes}
        for (name, _), parts in offsets.items():
            self.past[name].append(torch.stack(parts, axes[name]))
        self.carry = {n: torch.stack(parts, 1) for n, parts in carries.items()}

    def state(self) -> Any:
        recorded = torch.is_grad_enabled()
        past, carry = self.moment()
        if not recorded:
            past = {n: [p.detach() for p in values] for n, values in past.items()}
            carry = {n: c.detach() for n, c in carry.items()}
        return past, carry, self.batchsz

    def load_state(self, state: Any) -> None:
        past, carry, self._batch = state
        self.past, self.carry = {n: list(p) for n, p in past.items()}, dict(carry)
        if self.inplace:
            self.detach_state()

    def scan(self, x: Given, lengths: Any = None) -> Expected:
        return self.sequence(x, self.present, lengths=lengths)[0]

    def advance(self, x: Given, lengths: Any = None) -> None:
        self.sequence(x, lengths=lengths)

    def scan_at(
        self, x: Given, sel: Given, per_step: bool = False, lengths: Any = None
    ) -> tuple[Expected, ...]:
        times = iter(sel[t] if per_step else sel for t in range(max(1, x.tensor.shape[0])))
        read = self.present, lambda: self.current_at(next(times)).lanes
        return tuple(self.sequence(x, *read, lengths=lengths))

    # Reads.

    def places(self, sel: Given) -> Places:
        """Rules 1 to 3 of delayed reads; axes ``[B, *shape, D]``."""
        times, dtype = sel.tensor.detach().double(), sel.tensor.dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        moving = sel.lanes
        if times.dim() == 1 + len(self.shape):
            times, moving = times.unsqueeze(-1), moving.unsqueeze(-1)
        nan = times.isnan()
        times = times.nan_to_num(0.0)
        bounded = times.clamp(0.0, self.delay)
        longer = bounded.clamp(min=self.dt)
        tolerance = (4 * last_place(longer, dtype)).clamp(min=self.tolerance)
        s = bounded / self.dt
        hit = (bounded - s.round() * self.dt).abs() <= tolerance
        s = torch.where(hit, s.round(), s)
        since = torch.where(hit, 0.0, s.ceil() * self.dt - bounded)
        # Times are compared in their own dtype, or float32; an error in the last place of a time,
        # or of a step, is one of the difference.
        wide = torch.promote_types(dtype, torch.float32)
        inside = (times >= 0) & (times <= torch.tensor(self.delay, dtype=dtype).item())
        blur = 3 * max(unit_of(wide), self.unit) * longer * ~hit
        moving = torch.where(inside & ~nan, moving, 0.0)
        base = torch.stack((since, since, since + blur))
        return Places(
            s.ceil().long(), s.floor().long(), shifted(base, moving), since / self.dt,
            (times - bounded).abs() > tolerance, nan,
        )  # fmt: skip

    def gathered(self, name: str, steps: Tensor) -> Tensor:
        """The observations this many steps back, ``[.., B, *shape, D]``."""
        past = [self.observed(name, 1 + k) for k in range(1 + int(steps.max()))]
        stacked = torch.stack(past).unsqueeze(-1)
        stacked = stacked.expand(*stacked.shape[:-1], steps.shape[-1])
        return stacked.gather(0, steps.expand(1, *stacked.shape[1:])).squeeze(0)

    def batched(self, sel: Given) -> tuple[int, ...]:
        """The selector's shape, its batch broadcast."""
        return (max(self.batchsz, sel.tensor.shape[0]), *sel.tensor.shape[1:])

    def between(self, name: str, places: Places) -> Tensor:
        """A component where it has decayed since the older observation."""
        rate = places.since * inverse(self.tau(name)).unsqueeze(-1)
        value = self.gathered(name, places.older) * decayed(rate, self.unit)
        return worse(value, 3 * self.unit)

    def current_between(self, places: Places) -> Tensor:
        return self.between("current", places)

    def finished(self, value: Tensor, places: Places, sel: Given) -> Expected:
        """Overbound values, NaN, rounding, and the selector's own axes."""
        if self.current_overbound is not None:
            limit = lanes(torch.tensor(self.current_overbound))
            value = torch.where(places.outside, limit.view(3, *[1] * (value.dim() - 1)), value)
        value = self.stored(torch.where(places.nan, torch.nan, value))
        flat = sel.tensor.dim() == 1 + len(self.shape)
        return Expected(value.squeeze(-1) if flat else value, self.dtype)

    def read(self, sel: Given, between: Any) -> Expected:
        places = self.places(sel)
        if not places.older.numel():
            return Expected(torch.zeros(3, *self.batched(sel)), self.dtype)
        return self.finished(between(places), places, sel)

    def current_at(self, sel: Given) -> Expected:
        return self.read(sel, self.current_between)

    def spike_at(self, sel: Given) -> Tensor:
        places = self.places(sel)
        if not places.older.numel():
            return torch.zeros(self.batched(sel), dtype=torch.bool)
        value = self.gathered("spike", places.older)
        if self.mode == "nearest":
            newer = self.gathered("spike", places.newer)
            value = torch.where(places.fraction > 0.5, newer, value)
        if self.spike_overbound is not None:
            value = value.masked_fill(places.outside, self.spike_overbound)
        value = value & ~places.nan
        return value.squeeze(-1) if sel.tensor.dim() == 1 + len(self.shape) else value

    # Properties.

    @property
    def slots(self) -> int:
        steps = self.delay / self.dt
        whole = round(steps)
        return 1 + (whole if abs(steps - whole) <= 1e-6 else int(-(-steps // 1)))

    @property
    def spike(self) -> Tensor:
        return self.observed("spike", 1)

    @spike.setter
    def spike(self, value: Given) -> None:
        self.assign("spike", value)

    @property
    def current(self) -> Expected:
        return Expected(self.present(), self.dtype)

    @current.setter
    def current(self, value: Given) -> None:
        self.assign("current", value)

    dt: float = clearing("_dt")
    delay: float = clearing("_delay")
    batchsz: int = clearing("_batch")

    @property
    def batchedshape(self) -> tuple[int, ...]:
        return (self.batchsz, *self.shape)

    @property
    def spike_(self) -> Record:
        return Record(self, "spike")

    @property
    def current_(self) -> Record:
        return Record(self, "current")


class SingleExponentialCurrent(Synapse):
    constants = ("spike_charge", "time_constant")
    components = ("current",)


class AlphaCurrent(Synapse):
    constants = ("spike_charge", "time_constant")
    components = ("rise", "current")

    def coefficients(self) -> dict[str, Tensor]:
        ratio = worse(self.dt * inverse(self.tau("current")), 3 * self.unit)
        return {**super().coefficients(), "ratio": ratio}

    def following(
        self, last: dict[str, Tensor], driven: Tensor, coefficients: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        decay = coefficients["current"]
        fed = coefficients["ratio"] * last["rise"]
        return {"rise": last["rise"] * decay + driven, "current": (last["current"] + fed) * decay}

    def current_between(self, places: Places) -> Tensor:
        rate = places.since * inverse(self.tau("current")).unsqueeze(-1)
        fed = worse(rate * self.gathered("rise", places.older), 3 * self.unit)
        total = self.gathered("current", places.older) + fed
        return worse(total * decayed(rate, self.unit), 3 * self.unit)

    @property
    def rise_(self) -> Record:
        return Record(self, "rise")


class DoubleExponentialCurrent(Synapse):
    constants = ("spike_charge", "tc_decay", "tc_rise")
    components = ("pos_current", "neg_current")

    def gain(self) -> Tensor:
        longer, shorter = self.constant("tc_decay"), self.constant("tc_rise")
        gap = (longer - shorter).detach()
        # What rounds either time constant first errs by more of the gap than of itself.
        error = 4 * self.unit * (longer + shorter)[0].detach() / gap[0].abs()
        if GAIN_OF_ROUNDED_DECAYS:
            # A rounding of exp(-dt / tau) moves tau by tau**2 / dt of it, and this the gap.
            moved = (longer.square() + shorter.square())[0].detach() / self.dt
            error = error + self.unit * moved / gap[0].abs()
        gap = torch.stack((gap[0], gap[0].abs(), gap[0].abs()))
        gap = gap + (longer - longer.detach()) + signs(shorter) * (shorter - shorter.detach())
        return worse(self.constant("spike_charge") * inverse(gap), error)

    def tau(self, component: str) -> Tensor:
        return self.constant({"pos_current": "tc_decay", "neg_current": "tc_rise"}[component])

    def present(self) -> Tensor:
        return self.stored(minus(self.observed("pos_current", 1), self.observed("neg_current", 1)))

    def current_between(self, places: Places) -> Tensor:
        return minus(self.between("pos_current", places), self.between("neg_current", places))

    def pos_current_at(self, sel: Given) -> Expected:
        return self.read(sel, lambda places: self.between("pos_current", places))

    def neg_current_at(self, sel: Given) -> Expected:
        return self.read(sel, lambda places: self.between("neg_current", places))

    @property
    def pos_current(self) -> Expected:
        return Expected(self.observed("pos_current", 1), self.dtype)

    @pos_current.setter
    def pos_current(self, value: Given) -> None:
        self.assign("pos_current", value)

    @property
    def neg_current(self) -> Expected:
        return Expected(self.observed("neg_current", 1), self.dtype)

    @neg_current.setter
    def neg_current(self, value: Given) -> None:
        self.assign("neg_current", value)

    @property
    def pos_current_(self) -> Record:
        return Record(self, "pos_current")

    @property
    def neg_current_(self) -> Record:
        return Record(self, "neg_current")


class DelayedLinear:
    """A weighted sum of what each connection reads after its delay."""

    def __init__(
        self, in_features: int, out_features: int, step_time: float, *, synapse: Any,
        delay: float, weight_init: Any, delay_init: Any, bias: bool = False, bias_init: Any = None,
        batch_size: int = 1, dtype: torch.dtype = torch.float32, strategy: str = "auto",
        delays: str = "connection", mask: Any = None,
    ) -> None:  # fmt: skip
        self.delays, self.mask = delays, mask
        self.synapse = synapse((in_features,), step_time, delay, batch_size, dtype)
        weight = weight_init(None)
        if mask is not None:
            weight.tensor.masked_fill_(~mask.tensor, 0)
        learned = [weight, delay_init(None), bias_init(None) if bias else None]
        self.weight, self.delay, self.bias = (
            v and Given(v.tensor.to(dtype).requires_grad_()) for v in learned
        )

    def places(self) -> Places:
        times = Given(self.of_connections(self.delay.tensor.detach()).mT.unsqueeze(0))
        times.lanes = self.of_connections(self.delay.lanes).mT.unsqueeze(1)
        return self.synapse.places(times)

    def of_connections(self, delay: Tensor) -> Tensor:
        """The delays ``[..., out, in]``, of which some share one."""
        if self.delays == "input":
            delay = delay.unsqueeze(-2)
        elif self.delays == "output":
            delay = delay.unsqueeze(-1)
        return delay.expand(*delay.shape[:-2], *self.weight.tensor.shape)

    def present(self, places: Places) -> Tensor:
        synapse = self.synapse
        inputs = self.weight.tensor.shape[1]
        terms = synapse.current_between(places) * self.weight.lanes.mT.unsqueeze(1)
        if self.mask is not None:
            terms = torch.where(self.mask.tensor.mT, terms, 0.0)
        y = worse(terms.sum(-2), (3 + inputs) * synapse.unit)
        if self.bias is not None:
            y = worse(y + self.bias.lanes.unsqueeze(1), synapse.unit)
        return synapse.stored(y)

    def __call__(self, x: Given) -> Expected:
        if x.tensor.dim() == 3:
            return self.scan(x)
        self.synapse.step(x, self.synapse.coefficients())
        self.synapse.settle()
        return Expected(self.present(self.places()), self.synapse.dtype)

    def scan(self, x: Given, lengths: Any = None) -> Expected:
        places = self.places()
        return self.synapse.sequence(x, lambda: self.present(places), lengths=lengths)[0]

    def state(self) -> Any:
        return self.synapse.state()

    def load_state(self, state: Any) -> None:
        self.synapse.load_state(state)

    def clear(self, *args: Any, **kwargs: Any) -> None:
        self.synapse.clear(*args, **kwargs)

    def detach_state(self) -> None:
        self.synapse.detach_state()

    def state_dict(self) -> dict[str, Any]:
        own = {n: getattr(self, n) for n in ("weight", "delay", "bias")}
        state = {n: v.tensor.detach().clone() for n, v in own.items() if v is not None}
        return {**state, "synapse": self.synapse.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("weight", "delay", "bias"):
            if name in state:
                getattr(self, name).assign(state[name])
        self.synapse.load_state_dict(state["synapse"])


# What a program calls besides.


def tensor(data: Any, dtype: torch.dtype | None = None, requires_grad: bool = False) -> Given:
    return Given(torch.tensor(data, dtype=dtype, requires_grad=requires_grad))


def zeros(size: Sequence[int], dtype: torch.dtype) -> Given:
    return Given(torch.zeros(size, dtype=dtype))


def parameter(value: Given) -> Given:
    return Given(value.tensor.detach().requires_grad_())


def overwrite(constant: Given, values: Given) -> None:
    constant.assign(values.tensor)


def weights(size: Sequence[int], i: int) -> Tensor:
    """Some numbers that are exact in every dtype, negative ones and zeros among them."""
    count = torch.Size(size).numel()
    return ((5 * torch.arange(count) + i) % 9 - 4).view(size).double() / 4


def gradients(module: Any, outputs: list[Expected], leaves: list[Given]) -> list[Expected]:
    """Of a weighted sum of all outputs; with the roundings of the backward pass in the bound."""
    synapse = getattr(module, "synapse", module)
    total = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(outputs):
        value = torch.where(y.lanes.isnan(), 0.0, y.lanes)
        total = total + (lanes(weights(value.shape[1:], i)) * value).sum()
    # Whatever gradient of an observation is kept in its dtype, subnormals lose something of it.
    for observed in synapse.recorded:
        total = total + len(outputs) * smallest(synapse.dtype) * observed[2].sum()
    if total.requires_grad:
        found = torch.autograd.grad(total, [g.lanes for g in leaves], materialize_grads=True)
    else:
        found = tuple(torch.zeros_like(g.lanes) for g in leaves)
    # The sum over the steps of what each gives, and over the reads of each observation.
    terms = 32 + len(synapse.recorded)
    reads = len(outputs) if synapse.dtype.itemsize < 4 else 0
    error = terms * synapse.unit + reads * unit_of(synapse.dtype)
    # Where a layer filters its outputs, spikes before a detached state cancel up to rounding only.
    cancelled = synapse.unit * total.detach().abs() if module is not synapse else 0.0
    synapse.recorded = []
    results = []
    for leaf, gradient in zip(leaves, found, strict=True):
        own = leaf.tensor.dtype
        once = (gradient[2] - gradient[1]) + (error + unit_of(own)) * gradient[1] + smallest(own)
        once = once + cancelled / leaf.lanes[1].detach().nan_to_num(1.0).clamp(0.1, 10.0)
        # Twice: a slope has the roundings of the value that it belongs to, and its own.
        results.append(Expected(gradient, own, once))
    return results
