"""Random programs: what users may call on a module, as Python source that anyone can run.

A :class:`Program` is a list of statements. They run twice, with tritonsyn's names and with those of
``formulas``, and what each statement gives is compared. A failing program is shortened and printed.
"""

import copy
import math
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import formulas
import torch
from torch import Tensor

# What programs may hold; a feature that is off is neither called nor refused.
SEQUENCES_BY_CALL = True
"""``module(x)`` with one axis more than a step is a scan."""
BATCH_FOLLOWS = True
"""The batch is that of the input while the state is at rest, else another one is refused."""
CLEARS_SAMPLES = True
"""``clear(mask)`` rests single samples."""
STATES_OF_OTHERS = True
"""A state of another batch is taken over; of other numbers, step or delay it is refused."""
CARRIES = True
"""Half precision: steps carry float32. Derived currents and unknown keywords are refused."""
EQUAL_CONSTANTS = True
"""Learned time constants of the double synapse may be equal or have crossed."""

HALF_LIMITS = False
"""A longest delay that half precision rounds up has a slope there, as it has in float32."""

PREAMBLE = """\
import copy
import pickle

import torch
from torch import bfloat16, float16, float32, float64, no_grad, tensor, zeros
from torch.nn import Parameter as parameter

from tritonsyn import (
    AlphaCurrent, DelayedLinear, DoubleExponentialCurrent, SingleExponentialCurrent,
)
from tritonsyn.functional import pack_spikes

inf, nan = float("inf"), float("nan")


def weights(size, i):
    count = torch.Size(size).numel()
    return ((5 * torch.arange(count) + i) % 9 - 4).view(size).double() / 4


def gradients(module, outputs, leaves):
    total = torch.zeros((), dtype=float64)
    for i, y in enumerate(outputs):
        y = y.double()
        total = total + (weights(y.shape, i) * torch.where(y.isnan(), 0.0, y)).sum()
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, materialize_grads=True)


def overwrite(constant, values):
    with no_grad():
        constant.copy_(values)


def everything(module):
    synapse = getattr(module, "synapse", module)
    names = ("dt", "delay", "batchsz", "inplace", "shape")
    return module.state_dict(), [getattr(synapse, name) for name in names]


def refused(module, errors, call):
    state, settings = everything(module)
    state = {key: copy.deepcopy(value) for key, value in state.items()}
    try:
        call()
    except errors:
        pass
    else:
        raise AssertionError("not refused")
    after, settings_after = everything(module)
    assert settings == settings_after, (settings, settings_after)
    assert state.keys() == after.keys()
    for key, value in state.items():
        same = value.dtype == after[key].dtype and torch.equal(value, after[key])
        assert same, f"{key} was {value}, and after the refused call is {after[key]}"


def finite(values):
    for value in values:
        assert value.isfinite().all(), value
"""

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
KINDS = {
    "SingleExponentialCurrent": ("current",),
    "DoubleExponentialCurrent": ("pos_current", "neg_current"),
    "AlphaCurrent": ("current",),
}


@cache
def _names_of_tritonsyn() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(PREAMBLE, "<preamble>", "exec"), names)
    return names


@cache
def _names_of_formulas() -> dict[str, Any]:
    names = dict(vars(formulas))
    names |= {"copy": copy, "pickle": pickle, "inf": math.inf, "nan": math.nan, **DTYPES}
    names |= {"no_grad": torch.no_grad, "torch": torch, "pack_spikes": lambda x: x}
    names |= {"refused": lambda *_: None, "finite": lambda *_: None}
    return names


class MismatchError(AssertionError):
    """tritonsyn gave something else than the formulas."""


@dataclass
class Failure:
    """What went wrong, and in which statement."""

    error: Exception
    statement: str

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}\nin the statement\n    {self.statement}"

    def resembles(self, other: "Failure | None") -> bool:
        """Whether it is of the same kind, in the same call."""
        return other is not None and self._kind() == other._kind()

    def _kind(self) -> Any:
        call = re.sub(r"\d+", "", self.statement).split("(")[0]
        return type(self.error), call, re.sub(r"[^a-z]+", " ", str(self.error))[:30]


@dataclass
class Program:
    """Statements, and the seed that they come from."""

    seed: int
    statements: list[str] = field(default_factory=list)

    def failure(self) -> Failure | None:
        """The first statement that raises, or gives something else than the formulas."""
        ours, theirs = dict(_names_of_tritonsyn()), dict(_names_of_formulas())
        formulas.CARRIES, formulas.GAIN_OF_ROUNDED_DECAYS = CARRIES, EQUAL_CONSTANTS
        for statement in self.statements:
            code = compile(statement, "<program>", "exec")
            try:
                exec(code, theirs)
                exec(code, ours)
                for name in _results(statement):
                    check(ours[name], theirs[name])
            except Exception as error:
                return Failure(error, statement)
        return None

    def shortened(self) -> "Program":
        """Without the statements that its failure does not need."""
        first = self.failure()
        assert first is not None, "this program does not fail"
        kept = list(self.statements)
        size = max(1, len(kept) // 2)
        while True:
            at = len(kept)
            while at > 0:
                start = max(0, at - size)
                shorter = Program(self.seed, _without(kept, start, at))
                if first.resembles(shorter.failure()):
                    kept = shorter.statements
                at = start
            if size == 1:
                return Program(self.seed, kept)
            size //= 2

    def source(self) -> str:
        """Python that runs without these tests; what it should give, a comment says."""
        return "\n".join((PREAMBLE, *self.statements))


def _without(statements: list[str], start: int, end: int) -> list[str]:
    """Some statements less, and the names that they gave no longer in lists."""
    gone = re.findall(r"\b[xsvy]\d+\b", " ".join(s.split(" = ")[0] for s in statements[start:end]))
    kept = statements[:start] + statements[end:]
    if not gone:
        return kept
    listed = re.compile(rf"(?<=[\[ ])({'|'.join(gone)})(, |(?=\]))")
    return [listed.sub("", s).replace(", ]", "]") if " gradients(" in s else s for s in kept]


def _results(statement: str) -> list[str]:
    """The names that a statement gives to what is compared."""
    return re.findall(r"\b[yg]\d+\b", statement.split(" = ")[0])


def check(actual: Any, expected: Any) -> None:
    """A result of tritonsyn with the oracle's, which has its bound with it."""
    if isinstance(expected, (list, tuple)):
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            try:
                check(a, e)
            except MismatchError as error:
                raise MismatchError(f"{error}; result {i}") from None
        return
    if isinstance(expected, formulas.Expected):
        _compare_numbers(actual, expected)
    elif isinstance(expected, Tensor):
        if actual.dtype != expected.dtype or not torch.equal(actual, expected):
            raise MismatchError(f"spikes are {actual.tolist()}, expected {expected.tolist()}")
    elif actual != expected:
        raise MismatchError(f"{actual!r} is not the expected {expected!r}")


def _compare_numbers(actual: Tensor, expected: formulas.Expected) -> None:
    exact = expected.lanes[0].detach()
    if actual.dtype != expected.dtype or actual.shape != exact.shape:
        raise MismatchError(
            f"numbers are {tuple(actual.shape)} in {actual.dtype}, "
            f"expected {tuple(exact.shape)} in {expected.dtype}"
        )
    given = actual.detach().double()
    error, bound = (given - exact).abs(), expected.bound()
    # Written so that a NaN on one side only is wrong.
    wrong = ~((error <= bound) | (given.isnan() & exact.isnan()))
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise MismatchError(
            f"numbers differ at {int(wrong.sum())} of {wrong.numel()} places, first at {first}: "
            f"{given[first].item()!r}, expected {exact[first].item()!r} "
            f"with an error of at most {bound[first].item():.3g}"
        )


# How programs are made.


def literal(data: Tensor, grad: bool = False) -> str:
    """A tensor as source, exact to the last bit; zero sizes keep their shape."""
    dtype = str(data.dtype).removeprefix("torch.")
    named = dtype if data.is_floating_point() else str(data.dtype)
    named = "" if dtype in ("bool", "int64") else f", dtype={named}"
    values = re.sub(r"(\d)\.0\b", r"\1.", str(data.tolist()))
    if data.numel() == 0:
        return f"zeros({tuple(data.shape)}, dtype={data.dtype})"
    return f"tensor({values}{named}{', requires_grad=True' if grad else ''})"


def nudged(x: Tensor, ulps: int) -> Tensor:
    """Moved by units in the last place."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
    return (x.contiguous().view(integers) + ulps).view(x.dtype)


class Maker:
    """Writes a program, statement by statement, and knows of the state only its sizes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.program = Program(seed)
        self.count = 0
        self.outputs: list[str] = []
        self.leaves: list[str] = []
        self.constants: list[tuple[str, str, str]] = []
        self.batch = self.pick([1, 1, 2, 3])
        self.synapse = "module"
        self.saved = self.taken = ""

    # Small things.

    def pick(self, options: Any) -> Any:
        return self.random.choice(list(options))

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def number(self, low: float, high: float) -> float:
        return round(self.random.uniform(low, high), 3)

    def numbers(self, size: Any, low: float, high: float, dtype: torch.dtype) -> Tensor:
        count = torch.Size(size).numel()
        values = [self.number(low, high) for _ in range(count)]
        return torch.tensor(values, dtype=dtype).view(tuple(size))

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def write(self, statement: str) -> None:
        self.program.statements.append(statement)

    def result(self, call: str, floating: bool = True, count: int = 1) -> None:
        """A statement whose results are compared, and may take part in the next backward pass."""
        names = [self.name("y") for _ in range(count)]
        if self.chance(0.06):
            self.write(f"with no_grad(): {', '.join(names)} = {call}")
            return
        self.write(f"{', '.join(names)} = {call}")
        if floating and not self.inplace:
            self.outputs += names

    def given(self, data: Tensor, prefix: str = "x", learn: float = 0.3) -> str:
        grad = data.is_floating_point() and data.numel() > 0 and self.chance(learn)
        name = self.name(prefix)
        self.write(f"{name} = {literal(data, grad)}")
        if grad:
            self.leaves.append(name)
        return name

    # The module.

    def make(self, length: int) -> Program:
        pick = self.pick
        self.kind = pick(KINDS)
        self.dtype_name = pick(["float64"] * 4 + ["float32"] * 2 + ["bfloat16", "float16"])
        self.dtype = DTYPES[self.dtype_name]
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.dt = pick([1.0, 0.1, 0.25, 0.7, 1 / 3, 0.5, 1.7])
        self.delay = self.any_delay()
        self.inplace = self.chance(0.1)
        self.layer = self.chance(0.35)
        self.strategy = pick(["auto", "shift", "gemm", "bits", "events"]) if self.layer else ""
        # No time lies a tolerance from an observation, where its rounding would decide.
        tolerance = pick([0.0, 0.0, 0.0, 1e-3, self.dt * 0.0613, self.dt * 0.3047])
        options = {
            "spike_interp_mode": repr(pick(["previous", "nearest"])),
            "interp_tol": repr(tolerance),
            "current_overbound": repr(pick([0.0, None, -1.5, 2.25])),
            "spike_overbound": repr(pick([False, None, True])),
        }
        if self.layer:
            self.make_layer(options)
        else:
            self.make_synapse(options)
        for _ in range(length):
            self.act()
        self.finish()
        return self.program

    def any_delay(self) -> float:
        steps = self.pick([0, 1, 2, 3, 4, 5, 5, 17])
        return steps * self.dt if self.chance(0.7) else (steps + self.number(0.1, 0.9)) * self.dt

    @property
    def slots(self) -> int:
        steps = self.delay / self.dt
        whole = round(steps)
        return 1 + (whole if abs(steps - whole) <= 1e-6 else math.ceil(steps))

    def constant(self, name: str, low: float, high: float) -> str:
        """A number, or a tensor or a parameter of the group's size or less."""
        kinds = ["number"] * 3 + ["tensor", "parameter", "parameter"]
        form = self.pick(kinds)
        if form == "number":
            self.constants.append((name, form, ""))
            return repr(self.number(low, high))
        sizes = [(), self.shape, self.shape[-1:], (*self.shape[:-1], 1)]
        size = () if self.strategy in ("bits", "events") else self.pick(sizes)
        dtype = self.wide if self.chance(0.85) else self.pick([torch.float32, torch.float64])
        value = literal(self.numbers(size, low, high, dtype))
        self.constants.append((name, form, value))
        return f"parameter({value})" if form == "parameter" else value

    def physics(self) -> dict[str, str]:
        charge = self.pick([(0.5, 8.0), (-6.0, -0.5)])
        physics = {"spike_charge": self.constant("spike_charge", *charge)}
        if self.kind == "DoubleExponentialCurrent":
            physics["tc_decay"] = self.constant("tc_decay", 3.5, 9.0)
            physics["tc_rise"] = self.constant("tc_rise", 0.4, 3.2)
        else:
            bounds = self.pick([(0.4, 9.0)] * 5 + [(0.02, 0.06)])
            physics["time_constant"] = self.constant("time_constant", *bounds)
        return physics

    def make_synapse(self, options: dict[str, str]) -> None:
        self.shape = self.pick([(1,), (2,), (3,), (2, 2), (1, 3), (2, 1, 2)])
        arguments = {
            **self.physics(), "delay": repr(self.delay), **options, "batch_size": self.batch,
            "inplace": self.inplace, "dtype": self.dtype_name,
        }  # fmt: skip
        listed = ", ".join(f"{k}={v}" for k, v in arguments.items())
        self.write(f"module = {self.kind}({self.shape}, {self.dt!r}, {listed})")
        self.name_parameters()

    def make_layer(self, options: dict[str, str]) -> None:
        inputs, outputs = self.pick([1, 2, 3]), self.pick([1, 2, 3])
        self.shape = (inputs,)
        self.synapse = "module.synapse"
        physics = ", ".join((*self.physics().values(), *options.values(), str(self.inplace)))
        delays = {"connection": (outputs, inputs), "input": (inputs,), "output": (outputs,)}
        kind = self.pick(["connection", *delays])
        arguments = {
            "synapse": f"{self.kind}.partialconstructor({physics})",
            "delay": repr(self.delay),
            "weight_init": "lambda _: "
            + literal(self.numbers((outputs, inputs), -2, 2, torch.float32)),
            "delay_init": "lambda _: " + literal(self.times(delays[kind], self.dtype, False)),
            "delays": repr(kind),
            "batch_size": self.batch,
            "dtype": self.dtype_name,
            "strategy": repr(self.strategy),
        }
        if self.chance(0.4):
            values = literal(self.numbers((outputs,), -1, 1, torch.float32))
            arguments |= {"bias": True, "bias_init": "lambda _: " + values}
        if self.chance(0.3):
            there = [self.chance(0.6) for _ in range(outputs * inputs)]
            arguments["mask"] = literal(torch.tensor(there).view(outputs, inputs))
        self.biased = "bias" in arguments
        listed = ", ".join(f"{k}={v}" for k, v in arguments.items())
        self.write(f"module = DelayedLinear({inputs}, {outputs}, {self.dt!r}, {listed})")
        self.name_parameters()

    def name_parameters(self) -> None:
        """Gives every parameter a name of the program, from which gradients are asked for."""
        places = [
            (f"{self.synapse}.{n}", f"p_{n}") for n, form, _ in self.constants if form[0] == "p"
        ]
        if self.layer:
            places += [("module.weight", "p_weight"), ("module.delay", "p_delay")]
            places += [("module.bias", "p_bias")] * self.biased
        for place, name in places:
            self.write(f"{name} = {place}")
        self.leaves = [name for _, name in places]

    # Tensors.

    def input(self, batch: int, steps: int | None = None) -> Tensor:
        size = (*(() if steps is None else (steps,)), batch, *self.shape)
        spikes = torch.tensor([self.chance(0.4) for _ in range(torch.Size(size).numel())])
        spikes = spikes.view(size).bool()
        dtypes = [torch.bool] * 3 + [torch.uint8, torch.int64, torch.int32]
        dtypes += [torch.float32] * 2 + [torch.float64] * 2 + [torch.bfloat16, torch.float16]
        dtype = torch.bool if self.strategy in ("bits", "events") else self.pick(dtypes)
        if dtype.is_floating_point and self.chance(0.6):
            x = spikes * self.numbers(size, -2.0, 3.0, dtype)
            # Triton's interpreter takes -0.0 in bfloat16, of which it compares bits, for a spike.
            return x + 0.0 if dtype == torch.bfloat16 else x
        return spikes.to(dtype)

    def times(self, size: Any, dtype: torch.dtype, nan: bool = True) -> Tensor:
        """Hits, near hits, times between, outside, and NaN."""
        times = torch.empty(torch.Size(size).numel(), dtype=dtype)
        for i in range(times.numel()):
            where = self.random.random()
            hit = torch.tensor(self.random.randrange(self.slots) * self.dt, dtype=dtype)
            if where < 0.35:
                times[i] = hit
            elif where < 0.55:
                times[i] = nudged(hit, self.pick(NUDGES)) if hit > 0 else hit
            elif where < 0.85:
                whole = self.random.randrange(max(1, self.slots - 1))
                # Half a step is what it says where the step is a power of two.
                half = 0.5 if self.dt in (1.0, 0.5, 0.25) else 0.46
                part = self.pick([0.08, 0.21, 0.37, half, 0.54, 0.77, 0.93])
                times[i] = min((whole + part) * self.dt, self.delay)
            elif where < 0.93 or not nan:
                times[i] = self.pick([-0.7 * self.dt, self.delay + 0.6 * self.dt, -50.0, 1e4])
            else:
                times[i] = self.pick([math.nan, math.inf, -math.inf])
        return times.view(tuple(size))

    def selector(self, steps: int | None = None) -> str:
        size = [*(() if steps is None else (steps,)), self.pick([1, self.batch]), *self.shape]
        if self.chance(0.5):
            size.append(self.pick([0, 1, 2, 2, 3]))
        dtype = self.pick([self.wide] * 3 + list(DTYPES.values()))
        if self.chance(0.05):
            steps = self.numbers(size, -1, self.delay + 2, torch.float32)
            return self.given(steps.long(), "s")
        times = self.times(size, dtype)
        if dtype.itemsize < 4 and not HALF_LIMITS:
            rounded = torch.tensor(self.delay, dtype=dtype)
            times[(times.double() > self.delay) & (times <= rounded)] = 0.0
        return self.given(times, "s")

    # Actions.

    def act(self) -> None:
        actions: dict[Callable[[], None], float] = {
            self.step: 5, self.scan: 4, self.delayed: 5, self.present: 1.5, self.record: 1.5,
            self.flush: 1, self.detach: 0.4, self.clear: 0.5, self.assign: 1, self.refuse: 1.5,
            self.change_constant: 0.8, self.duplicate: 0.7, self.save: 1, self.load: 1,
            self.call_sequence: SEQUENCES_BY_CALL, self.follow: BATCH_FOLLOWS,
            self.clear_samples: CLEARS_SAMPLES, self.load_other: STATES_OF_OTHERS * 0.7,
            self.refuse_more: CARRIES * 0.5, self.exchange: 0.8,
        }  # fmt: skip
        if not self.layer:
            actions |= {
                self.advance: 1, self.scan_at: 1.5, self.resize: 0.5, self.toggle: 0.3,
            }  # fmt: skip
        self.random.choices(list(actions), list(actions.values()))[0]()

    def step(self) -> None:
        self.result(f"module({self.given(self.input(self.batch))})")

    def sequence(self, packs: bool = True) -> str:
        self.steps = self.pick([0, 1, 1, 2, 3, 4, 7])
        x = self.input(self.batch, self.steps)
        name = self.given(x)
        if packs and x.dtype == torch.bool and x.numel() and self.chance(0.4):
            return f"pack_spikes({name})"
        return name

    def lengths(self) -> str:
        """Of each sample of the last sequence; or nothing, which is all of them."""
        lengths = [self.random.randint(0, self.steps) for _ in range(self.batch)]
        return f", lengths={lengths}" if self.chance(0.3) else ""

    def scan(self) -> None:
        self.result(f"module.scan({self.sequence()}{self.lengths()})")

    def call_sequence(self) -> None:
        self.result(f"module({self.sequence(packs=False)})")

    def advance(self) -> None:
        self.write(f"module.advance({self.sequence()}{self.lengths()})")

    def scan_at(self) -> None:
        x, per_step = self.sequence(), self.chance(0.3)
        if per_step and self.steps:
            times = f"{self.selector(self.steps)}, per_step=True"
        else:
            times = self.selector()
        self.result(f"module.scan_at({x}, {times}{self.lengths()})", count=2)

    def delayed(self) -> None:
        names = ["current_at", "current_at", "spike_at"]
        if self.kind == "DoubleExponentialCurrent":
            names += ["pos_current_at", "neg_current_at"]
        method = self.pick(names)
        call = f"{self.synapse}.{method}({self.selector()})"
        self.result(call, floating=method != "spike_at")

    def present(self) -> None:
        name = self.pick([*KINDS[self.kind], "current", "spike"])
        self.result(f"{self.synapse}.{name}", floating=name != "spike")

    def records(self) -> list[str]:
        more = ["rise"] if self.kind == "AlphaCurrent" else []
        return [f"{name}_" for name in (*KINDS[self.kind], *more, "spike")]

    def record(self) -> None:
        record = self.pick(self.records())
        offset = self.random.randint(1, self.slots)
        length = self.random.randint(1, self.slots)
        calls = [
            "peek()", f"read({offset % self.slots})", f"history({length})",
            f"readrange({length})", f"readrange({1 + self.slots - offset}, {offset})",
            f"readrange({offset}, {offset}, True)",
        ]  # fmt: skip
        self.result(f"{self.synapse}.{record}.{self.pick(calls)}", floating=record != "spike_")

    def flush(self) -> None:
        """The gradients of all results since the last one; the graph ends here."""
        if self.outputs and self.leaves:
            outputs, leaves = ", ".join(self.outputs), ", ".join(self.leaves)
            self.write(f"{self.name('g')} = gradients(module, [{outputs}], [{leaves}])")
        self.write(self.pick(["module.clear()", "module.detach_state()"]))
        self.outputs = []
        self.leaves = [name for name in self.leaves if name.startswith("p_")]

    def detach(self) -> None:
        self.write("module.detach_state()")

    def clear(self) -> None:
        self.write("module.clear()")

    def assign(self) -> None:
        name = self.pick([*KINDS[self.kind], "spike"])
        size = (self.batch, *self.shape)
        if name == "spike":
            value = self.numbers(size, 0, 1, torch.float32) < 0.5
        else:
            value = self.numbers(size, -2, 2, self.pick([self.dtype, self.dtype, torch.float32]))
        self.write(f"{self.synapse}.{name} = {self.given(value, 'v')}")

    def resize(self) -> None:
        """Another step, delay or batch."""
        what = self.pick(["dt", "delay", "batchsz"])
        if what == "dt":
            self.dt = self.pick([1.0, 0.1, 0.25, 0.7, 0.5])
            # Else a short step would make thousands of slots.
            if self.delay / self.dt > 40:
                self.dt = 1.0
            self.write(f"module.dt = {self.dt!r}")
        elif what == "delay":
            self.delay = self.any_delay()
            self.write(f"module.delay = {self.delay!r}")
        else:
            self.batch = self.pick([1, 2, 3])
            self.write(f"module.batchsz = {self.batch}")
        self.saved = self.taken = ""

    def toggle(self) -> None:
        self.flush()
        self.inplace = not self.inplace
        self.write(f"module.inplace = {self.inplace}")

    def change_constant(self) -> None:
        name, form, value = self.pick(self.constants)
        place = f"{self.synapse}.{name}"
        self.flush()
        factor = self.pick([0.875, 1.03125, 1.125])
        if form == "number":
            self.write(f"{place} = {place} * {factor}")
            if STATES_OF_OTHERS:
                self.saved = ""
            return
        scaled = re.sub(
            r"-?\d+\.\d*(e-?\d+)?", lambda m: repr(round(float(m[0]) * factor, 4)), value
        )
        if self.chance(0.5):
            self.write(f"overwrite({place}, {scaled})")
        else:
            self.write(f"{place} = {f'parameter({scaled})' if form == 'parameter' else scaled}")
            self.name_parameters()

    def duplicate(self) -> None:
        """Goes on with a copy, which begins without a graph."""
        self.flush()
        ways = ["copy.deepcopy(module)"]
        if not self.layer:
            ways.append("pickle.loads(pickle.dumps(module))")
        self.write(f"other, module = module, {self.pick(ways)}")
        self.name_parameters()
        if self.chance(0.3):  # What the original does then must not matter.
            x = literal(self.input(self.batch, 1))
            self.write(f"other.scan({x})")

    def save(self) -> None:
        self.saved = self.name("state")
        self.saved_batch = self.batch
        self.write(f"{self.saved} = copy.deepcopy(module.state_dict())")

    def load(self) -> None:
        if self.saved:
            self.flush()
            self.write(f"module.load_state_dict({self.saved})")
            self.batch = self.saved_batch

    def exchange(self) -> None:
        """Takes the state out, or puts one in: that of now, or of an earlier moment."""
        if self.chance(0.4):
            self.write("module.load_state(module.state())")
        elif self.taken and self.chance(0.7):
            self.write(f"module.load_state({self.taken})")
            self.batch = self.taken_batch
        else:
            self.taken, self.taken_batch = self.name("state"), self.batch
            self.write(f"with no_grad(): {self.taken} = module.state()")

    # Refused calls, after which everything is as before.

    def refuse(self) -> None:
        size = (self.batch, *self.shape)
        dtype = f", dtype={self.dtype_name}"
        wrong = (*size[:-1], size[-1] + 1)
        s = self.synapse
        value_errors = [
            f"module(torch.ones({wrong}))",
            f"module(torch.ones({size[1:]}))",
            f"module.scan(torch.ones({(2, *wrong)}))",
            f"module.scan(torch.ones({size}))",
            f"{s}.current_at(torch.zeros({wrong}))",
            f"{s}.spike_at(torch.zeros({(*size, 1, 1)}))",
            f"{s}.current_at(torch.zeros({(self.batch + 1, *self.shape)}))",
            f"setattr({s}, 'spike', torch.ones({wrong}, dtype=torch.bool))",
            f"setattr({s}, '{KINDS[self.kind][0]}', torch.ones({wrong}{dtype}))",
            f"{s}.current_.readrange(0)" if self.kind[0] != "D" else f"{s}.spike_.readrange(0)",
            f"{s}.spike_.readrange({self.slots + 1})",
        ]
        type_errors = [
            f"module(torch.ones({size}, dtype=torch.complex64))",
            f"module.scan(torch.ones({(1, *size)}, dtype=torch.complex64))",
            "module(None)",
            "module.scan([1.0])",
            f"{s}.current_at(torch.zeros({size}, dtype=torch.bool))",
            f"{s}.spike_at(torch.zeros({size}, dtype=torch.complex64))",
            f"{s}.spike_at(None)",
        ]
        either = [
            f"module(torch.ones({size}, device='meta'))",
            f"module.scan(torch.ones({(2, *size)}, device='meta'))",
            f"{s}.current_at(torch.zeros({size}, device='meta'))",
            f"setattr({s}, '{KINDS[self.kind][0]}', torch.ones({size}, device='meta'{dtype}))",
        ]
        if not self.layer:
            value_errors += [
                f"module.scan_at(torch.ones({(2, *wrong)}), torch.zeros({size}))",
                f"module.scan_at(torch.ones({(2, *size)}), torch.zeros({wrong}))",
                f"module.advance(torch.ones({wrong}))",
                *(f"setattr(module, 'dt', {v})" for v in ("0.0", "-1.0", "nan", "inf")),
                *(f"setattr(module, 'delay', {v})" for v in ("-1.0", "nan", "inf")),
                "setattr(module, 'batchsz', 0)",
            ]
            type_errors += ["setattr(module, 'batchsz', 1.5)", "setattr(module, 'dt', 'one')"]
        calls, errors = self.pick(
            [(value_errors, "ValueError"), (type_errors, "TypeError"), (either, None)]
        )
        errors = errors or "(TypeError, ValueError)"
        self.write(f"refused(module, {errors}, lambda: {self.pick(calls)})")

    # What is switched on above.

    def follow(self) -> None:
        """Another batch: taken at rest, else refused."""
        batch = 1 + self.batch % 3
        if self.chance(0.5):
            self.flush()
            self.write("module.clear()")
            self.batch = batch
            self.saved = self.saved if STATES_OF_OTHERS else ""
            self.step()
            return
        self.step()
        x = self.input(batch, self.pick([None, 2]))
        method = "module" if x.dim() == 1 + len(self.shape) else "module.scan"
        self.write(f"refused(module, ValueError, lambda: {method}({literal(x)}))")

    def clear_samples(self) -> None:
        mask = torch.tensor([self.chance(0.5) for _ in range(self.batch)])
        self.write(f"module.clear({literal(mask)})")
        if self.chance(0.2):
            wrong = "torch.ones(7, dtype=torch.bool)"
            self.write(f"refused(module, ValueError, lambda: module.clear({wrong}))")

    def load_other(self) -> None:
        """A state of another batch is taken over; of another step or delay it is refused."""
        if self.layer:
            return
        self.flush()
        other = self.name("other")
        self.write(f"{other} = copy.deepcopy(module)")
        way = self.pick(["batch", "dt", "delay", "constant"])
        if way == "batch":
            batch = 1 + self.batch % 3
            self.write(f"{other}.batchsz = {batch}")
            self.write(f"{other}.scan({literal(self.input(batch, 2))})")
            self.write(f"module.load_state_dict({other}.state_dict())")
            self.batch = batch
            return
        numbers = [name for name, form, _ in self.constants if form == "number"]
        if way == "constant" and not numbers:
            return
        name = self.pick(numbers) if way == "constant" else way
        changed = {"dt": self.dt * 2, "delay": self.delay + 3 * self.dt}.get(name)
        value = f"{other}.{name} * 1.0625" if changed is None else repr(changed)
        self.write(f"{other}.{name} = {value}")
        load = f"module.load_state_dict({other}.state_dict())"
        self.write(f"refused(module, RuntimeError, lambda: {load})")

    def refuse_more(self) -> None:
        size = (self.batch, *self.shape)
        calls = [f"module(torch.ones({size}), no_such=1)", "module.clear(no_such=1)"]
        if self.kind == "DoubleExponentialCurrent" and self.chance(0.5):
            call = f"setattr({self.synapse}, 'current', torch.ones({size}))"
            self.write(f"refused(module, AttributeError, lambda: {call})")
            return
        self.write(f"refused(module, TypeError, lambda: {self.pick(calls)})")

    def finish(self) -> None:
        """Gradients of all that is left, then all records in order of time."""
        self.flush()
        for record in self.records():
            self.write(f"{self.name('y')} = {self.synapse}.{record}.readrange({self.slots})")
            self.write(f"{self.name('y')} = {self.synapse}.{record}.recordsz")
        for name in ("dt", "delay", "batchsz", "shape", "batchedshape"):
            self.write(f"{self.name('y')} = {self.synapse}.{name}")


NUDGES = [-100, -16, -9, -7, -2, -1, 1, 2, 7, 9, 16, 100]
"""Units in the last place: clear of four, where the rounding of a whole multiple of a step, and of
the step itself, decide what is a hit."""


def make(seed: int) -> Program:
    """The program of this seed."""
    maker = Maker(seed)
    if EQUAL_CONSTANTS and maker.chance(0.01):
        return _equal_constants(maker)
    return maker.make(maker.random.randint(1, 25))


def _equal_constants(maker: Maker) -> Program:
    """Learned time constants that are equal, or nearly, or have crossed: all of it is finite.

    Those that have crossed give what the formulas say; those that meet have a limit only.
    """
    rise = maker.number(0.5, 6.0)
    decay = maker.pick([rise, math.nextafter(rise, 9.0), rise * 1.0001, 0.7 * rise])
    y, g = ("y1", "g1") if decay < rise else ("z", "slopes")
    x = literal(maker.numbers((6, 1, 2), 0, 1, torch.float64), grad=True)
    dtype = maker.pick(["float64", "float32"])
    for statement in (
        f"p_td = parameter(tensor(9., dtype={dtype}))",
        f"p_tr = parameter(tensor({rise}, dtype={dtype}))",
        "module = DoubleExponentialCurrent((2,), 0.5, spike_charge=2., tc_decay=p_td, "
        f"tc_rise=p_tr, delay=1., dtype={dtype})",
        f"overwrite(p_td, tensor({decay!r}, dtype={dtype}))",
        f"x1 = {x}",
        f"{y} = module.scan(x1)",
        f"finite([{y}])",
        f"{g} = gradients(module, [{y}], [x1, p_td, p_tr])",
        f"finite({g})",
    ):
        maker.write(statement)
    return maker.program
