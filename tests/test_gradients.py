"""Gradients: of every operation by differences, of whole programs against a stacked history.

The oracle keeps its history as a list of tensors and reads it with PyTorch operations, so that
PyTorch's own autograd differentiates it; in float64 the gradients must agree to its rounding.
"""

import itertools
import random
from typing import ClassVar

import pytest
import torch
from synapses import PHYSICS, every_kind, make, same, snapshot, spikes, uniform
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from tritonsyn import DelayedLinear, RecordTensor, SingleExponentialCurrent, functional, use_backend
from tritonsyn.functional import ReadRule, Ring
from tritonsyn.ops import select_scan, taps, write_rows
from tritonsyn.ops.projection import project

F64 = torch.float64
STEP = 1.3


def leaf(*shape, seed, device, low=0.0, high=1.0):
    return uniform(*shape, seed=seed, low=low, high=high).to(device).requires_grad_()


# -- each operation, by differences ------------------------------------------------------------


def gradcheck(function, inputs, backend):
    """The kernels are compared with the reference elsewhere, so a projection suffices for them."""
    full = backend == "reference"
    return torch.autograd.gradcheck(function, inputs, fast_mode=not full, check_undefined_grad=full)


def cases(kernels, **values):
    """Every combination on the reference; on the kernels, which are slow here, the ones given."""
    everything = [("reference", *case) for case in itertools.product(*values.values())]
    return pytest.mark.parametrize(
        ("backend", *values), [*everything, *(("triton", *case) for case in kernels)]
    )


@pytest.mark.parametrize("slots", [1, 3])
def test_push_read_and_write_rows(device, backend, slots):
    record = leaf(slots, 2, 2, seed=0, device=device)
    value = leaf(2, 2, seed=1, device=device)

    def program(record, value):
        record = functional.push(record.clone(), value, slots - 1, backend=backend)
        record, newest = functional.read(record, slots - 1)
        record, oldest = functional.read(record, 0)
        rows = torch.stack([newest * oldest, value])[: min(slots, 2)]
        return write_rows(record, rows, slots - 1), oldest

    assert gradcheck(program, (record, value), backend)


@cases(
    count=[1, 2], per_synapse=[False, True], slots=[1, 3],
    kernels=[(1, False, 1), (2, True, 3)],
)  # fmt: skip
def test_step(device, backend, count, per_synapse, slots):
    shape = (2,) if per_synapse else ()
    x = leaf(2, 2, seed=0, device=device)
    gain, *decays = (leaf(*shape, seed=1 + i, device=device) for i in range(1 + count))
    records = [leaf(slots, 2, 2, seed=5 + i, device=device) for i in range(count)]

    def program(x, gain, *rest):
        components = tuple(record.clone() for record in rest[count:])
        spikes = torch.zeros(slots, 2, 2, dtype=torch.bool, device=device)
        pointers = tuple(range(slots))[-count:] if slots > 1 else (0,) * count
        ring = Ring(components, pointers, spikes, 0)
        y, components = functional.step(x, ring, gain, rest[:count], backend=backend)
        return y, *components

    assert gradcheck(program, (x, gain, *decays, *records), backend)


@cases(
    mode=["previous", "nearest", "next", "linear", "expdecay"],
    count=[1, 2], rows=[1, 2], overbound=[None, 0.5],
    kernels=[("nearest", 1, 2, None), ("linear", 1, 2, 0.5), ("expdecay", 2, 1, 0.5)],
)  # fmt: skip
def test_select(device, backend, mode, count, rows, overbound):
    rule = ReadRule(mode, STEP, 2 * STEP, overbound=overbound)
    # Away from observations and from halfway, where the value jumps or bends.
    sel = torch.tensor([[[0.4, 3.4], [2.2, -1.0]], [[1.1, 0.8], [2.9, 1.7]]], dtype=F64)
    sel = sel[:rows].to(device).requires_grad_()
    records = [leaf(3, 2, 2, seed=i, device=device) for i in range(count)]
    rates = [None] * count
    if mode == "expdecay":  # one for the group and one for each synapse
        rates = [leaf(*shape, seed=9, device=device) for shape in ((), (2,))][:count]

    def program(sel, *rest):
        components = tuple(record.clone() for record in rest[:count])
        rates = rest[count:] or (None,) * count
        pointers = (2, 1)[:count]
        value, components = functional.select(
            components, sel, rates, pointers, rule, backend=backend
        )
        return value, *components

    used = [rate for rate in rates if rate is not None]
    assert gradcheck(program, (sel, *records, *used), backend)


@cases(rows=[1, 2], overbound=[None, 0.5], learned=["all", "one rate"], kernels=[(1, 0.5, "all")])
def test_select_alpha(device, backend, rows, overbound, learned):
    """Also with one rate for both components, as a synapse has it, and at observations."""
    rule = ReadRule("alpha", STEP, 2 * STEP, overbound=overbound)
    sel = torch.tensor([[[0.4, 3.4], [2.2, -1.0]], [[1.1, 0.8], [2.9, 1.7]]], dtype=F64)
    sel = sel[:rows].to(device).requires_grad_()
    records = [leaf(3, 2, 2, seed=i, device=device) for i in range(2)]
    rates = [leaf(*shape, seed=9, device=device) for shape in ((), (2,))]
    rates = rates[1:] if learned == "one rate" else rates

    def program(sel, *rest):
        components = tuple(record.clone() for record in rest[:2])
        value, components = functional.select(
            components, sel, (rest[2], rest[-1]), (2, 1), rule, backend=backend
        )
        return value, *components

    assert gradcheck(program, (sel, *records, *rates), backend)


def test_the_slope_of_an_alpha_read_at_an_observation_is_that_from_the_left(device, each_backend):
    rule = ReadRule("alpha", STEP, 2 * STEP)
    records = tuple(uniform(3, 1, 1, seed=i).to(device) for i in range(2))
    rates = (torch.tensor(0.7, dtype=F64, device=device),) * 2

    def value(time):
        sel = time.view(1, 1).to(device)
        return functional.select(records, sel, rates, (0, 0), rule)[0].sum()

    time = torch.tensor(STEP, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(time), time)
    step = 1e-7
    left = (value(time.detach()) - value(time.detach() - step)) / step
    torch.testing.assert_close(slope, left.cpu(), rtol=1e-5, atol=1e-6)


@cases(mode=["expdecay", "alpha"], kernels=[("alpha",)])
def test_taps_of_a_pair(device, backend, mode):
    """What a connection reads of two components, and its gradients, are those of a read."""
    rule = ReadRule(mode, STEP, 2 * STEP)
    weight = leaf(4, 3, seed=1, device=device, low=-1.0)
    delay = leaf(4, 3, seed=2, device=device, high=2 * STEP)
    rates = [leaf(*shape, seed=3, device=device) for shape in ((), (3,))]
    sequences = [uniform(3, 1, 3, seed=5 + i).to(device) for i in range(2)]

    def projected(weight, delay, *rates):
        tapped = taps(weight, delay, rates, rule, 3, backend=backend)
        return project(sequences, tapped, 1, 3, strategy="shift", backend=backend)[0, 0]

    def read(weight, delay, *rates):
        pair = [sequence.expand(3, 4, 3).contiguous() for sequence in sequences]
        return (weight * select_scan(pair, delay, rates, rule, 1, backend=backend)[0]).sum(1)

    inputs = (weight, delay, *rates)
    torch.testing.assert_close(projected(*inputs), read(*inputs), rtol=1e-12, atol=1e-13)
    assert gradcheck(projected, inputs, backend)


@cases(rows=[1, 2], kernels=[(1,)])
def test_select_scan(device, backend, rows):
    rule = ReadRule("expdecay", STEP, 2 * STEP, overbound=0.0)
    sel = leaf(rows, 2, 1, seed=7, device=device, high=2 * STEP)
    sequences = [leaf(2 + 2, 2, 2, seed=i, device=device) for i in range(2)]
    rates = [leaf(*shape, seed=9, device=device) for shape in ((), (2,))]

    def program(sel, *rest):
        return select_scan(rest[:2], sel, rest[2:], rule, 2, backend=backend)

    assert gradcheck(program, (sel, *sequences, *rates), backend)


@pytest.mark.parametrize("wanted", ["x", "gain", "decay", "record"])
def test_any_one_gradient_can_be_wanted_alone(device, each_backend, wanted):
    def program(given):
        shapes = {"x": (2, 2), "gain": (), "decay": (2,), "record": (3, 2, 2)}
        inputs = {name: uniform(*shape, seed=1).to(device) for name, shape in shapes.items()}
        for name in given:
            inputs[name].requires_grad_()
        components = (inputs["record"].clone(),)
        for pointer in (1, 2, 0):
            spikes = torch.zeros(3, 2, 2, dtype=torch.bool, device=device)
            ring = Ring(components, (pointer,), spikes, pointer)
            y, components = functional.step(inputs["x"], ring, inputs["gain"], (inputs["decay"],))
        y.sum().backward()
        return inputs[wanted].grad

    alone, together = program([wanted]), program(["x", "gain", "decay", "record"])
    torch.testing.assert_close(alone, together, rtol=1e-14, atol=1e-14)


# -- whole programs, against a stacked history -------------------------------------------------


class Oracle:
    """A synapse whose history is a list, oldest first, differentiated by PyTorch alone."""

    def __init__(self, kind, taus, gain, slots, blank):
        self.taus = taus * 2 if kind == "alpha" else taus
        self.kind, self.gain, self.slots = kind, gain, slots
        self.blank = blank
        self.clear()

    def clear(self):
        self.components = [[self.blank] * self.slots for _ in self.taus]

    def detach_state(self):
        self.components = [[v.detach() for v in history] for history in self.components]

    def step(self, x):
        now = self.later([history[-1] for history in self.components], STEP, self.taus)
        for i, (history, value) in enumerate(zip(self.components, now, strict=True)):
            driven = self.kind != "alpha" or i == 0
            history.append(value + self.gain() * x if driven else value)
            del history[0]
        return self.current(-1)

    def later(self, values, time, taus):
        """The states a time after they were these."""
        if self.kind == "alpha":
            values = [values[0], values[1] + time / taus[1] * values[0]]
        return [v * torch.exp(-time / tau) for v, tau in zip(values, taus, strict=True)]

    def combined(self, values):
        """The current of the states."""
        return values[0] - values[1] if self.kind == "double" else values[-1]

    def current(self, index):
        return self.combined([history[index] for history in self.components])

    def read(self, sel, overbound):
        sel = sel.expand(self.blank.shape[0], -1, -1)
        bounded = sel.detach().clamp(0.0, STEP * (self.slots - 1))
        time = torch.where(sel.detach() == bounded, sel, bounded)
        steps = (bounded / STEP).round(decimals=9).ceil()
        older = [
            torch.stack(history[::-1], -1).gather(-1, steps.long()) for history in self.components
        ]
        taus = [tau.unsqueeze(-1) for tau in self.taus]
        value = self.combined(self.later(older, steps * STEP - time, taus))
        inside = (sel.detach() - bounded).abs() < 1e-9
        return value if overbound is None else torch.where(inside, value, overbound)


class Pair:
    """The synapse and its oracle, with the same parameters."""

    def __init__(self, kind, slots, overbound, per_synapse, device):
        shape = (3,) if per_synapse else ()
        names = list(PHYSICS[kind])[1:]
        self.constants = {"spike_charge": leaf(seed=11, device=device, low=2.0, high=3.0)}
        for i, name in enumerate(names):
            size = {"seed": 12 + i, "low": 5.0 - 3 * i, "high": 7.0 - 3 * i}
            self.constants[name] = leaf(*shape, device=device, **size)
        parameters = {name: nn.Parameter(v.detach().clone()) for name, v in self.constants.items()}
        self.synapse = make(
            kind, 3, STEP, delay=STEP * (slots - 1), batch_size=2, dtype=F64, device=device,
            current_overbound=overbound, **parameters,
        )  # fmt: skip
        charge, *taus = self.constants.values()
        width = (lambda: taus[0] - taus[1]) if kind == "double" else (lambda: taus[0])
        blank = torch.zeros(2, 3, dtype=F64, device=device)
        self.oracle = Oracle(kind, taus, lambda: charge / width(), slots, blank)
        self.overbound = overbound
        self.records = self.synapse.component_records()
        self.results = ([], [])

    def compare(self, ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
        for results, value in zip(self.results, (ours, theirs), strict=True):
            if value.requires_grad:
                results.append(value)

    def do(self, action, argument, other):
        """One operation on both: on ours with ``argument``, on the oracle with ``other``."""
        history = self.oracle.components[0]
        match action:
            case "step":
                self.compare(self.synapse(argument), self.oracle.step(other))
            case "frozen step":
                with torch.no_grad():
                    ours, theirs = self.synapse(argument), self.oracle.step(other)
                self.compare(ours, theirs)
                self.oracle.detach_state()
                assert not any(record.value.requires_grad for record in self.records)
            case "read":
                theirs = self.oracle.read(other, self.overbound)
                self.compare(self.synapse.current_at(argument), theirs)
            case "current":
                self.compare(self.synapse.current, self.oracle.current(-1))
            case "assign":
                self.records[0].latest = argument
                history.append(other)
                del history[0]
                for record, components in zip(
                    self.records[1:], self.oracle.components[1:], strict=True
                ):
                    record.latest = argument
                    components.append(other)
                    del components[0]
                self.synapse.spike_.incr()
            case "replace":
                self.records[0].write(argument, 1)
                history[-1] = other
            case "range":  # an operation of the user's on the whole record
                block = self.records[0].readrange(self.oracle.slots)
                self.compare(block * block, torch.stack(history, -1) ** 2)
            case "shift":  # a new record made of the old one and of something else
                self.records[0].value = self.records[0].value + 0.3 * argument
                history[:] = [value + 0.3 * other for value in history]
            case "clear":
                self.synapse.clear()
                self.oracle.clear()
            case "detach":
                self.synapse.detach_state()
                self.oracle.detach_state()

    def check(self, leaves, others):
        """Gradients of a random loss, to the leaves and to the constants."""
        names = list(self.constants)
        ours = [*leaves, *(getattr(self.synapse, name) for name in names)]
        theirs = [*others, *(self.constants[name] for name in names)]
        losses = [
            sum((v * uniform(*v.shape, seed=i).to(v.device)).sum() for i, v in enumerate(results))
            for results in self.results
        ]
        gradients = [
            torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
            for loss, inputs in zip(losses, (ours, theirs), strict=True)
        ]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


OBSERVATIONS = ("step", "assign", "replace", "shift", "frozen step")
WEIGHTS = {
    "step": 8, "read": 6, "current": 1, "assign": 1, "replace": 1, "range": 1, "shift": 1,
    "clear": 0.3, "detach": 0.5, "frozen step": 0.5,
}  # fmt: skip


def run(kind, slots, seed, length, device, actions=None, overbound=0.0, per_synapse=False):
    """A random program, or the one given, on the synapse and on the oracle."""
    choose = random.Random(seed)
    pair = Pair(kind, slots, overbound, per_synapse, device)
    leaves = []
    if actions is None:
        actions = choose.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    for number, action in enumerate([*actions, "step", "read"]):
        argument = None
        if action in OBSERVATIONS:
            argument = leaf(2, 3, seed=100 * seed + number, device=device)
        elif action == "read":
            argument = times(slots, 100 * seed + number, choose, device)
        other = None if argument is None else argument.detach().clone().requires_grad_()
        if argument is not None:
            leaves.append((argument, other))
        pair.do(action, argument, other)
    pair.check(*zip(*leaves, strict=True))


def times(slots, seed, choose, device):
    """Between observations, at them, and outside of the record; shared by the batch or not."""
    limit = STEP * (slots - 1)
    shape = (choose.choice([1, 2]), 3, 2)
    sel = uniform(*shape, seed=seed, low=-0.3 * STEP, high=limit + 0.3 * STEP)
    at = (sel / STEP).round().clamp(0, slots - 1) * STEP
    hits = uniform(*shape, seed=seed + 1) < 0.3
    return torch.where(hits, at, sel).to(device).requires_grad_()


@every_kind
@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_random_programs(device, kind, slots, seed):
    overbound, per_synapse = [None, 0.0, -0.7][seed % 3], bool((slots + seed) % 2)
    run(kind, slots, seed, 25, device, overbound=overbound, per_synapse=per_synapse)


@pytest.mark.parametrize(("kind", "slots"), [("single", 1), ("double", 3), ("alpha", 3)])
def test_random_programs_on_kernels(device, kind, slots):
    with use_backend("triton"):
        run(kind, slots, 5 + slots, 12, device, per_synapse=True)


@every_kind
@pytest.mark.parametrize("actions", [
    ["step"] * 9,  # around the end of the record, twice
    ["step", "read", "read", "step", "read"],
    ["step", "step", "detach", "step", "read"],
    ["step", "clear", "step", "read"],
    ["step", "read", "frozen step", "read", "step", "read"],
    ["step", "shift", "step", "shift", "read", "range", "step"],
    ["assign", "read", "assign", "assign", "read", "replace", "current", "replace"],
    ["step", "range", "read", "range", "step", "range"],
], ids="-".join)  # fmt: skip
def test_programs(device, kind, actions):
    run(kind, 3, 1, 0, device, actions)


@every_kind
def test_second_backward_through_a_kept_graph_gives_the_same(device, each_backend, kind):
    synapse = make(kind, 3, STEP, delay=2 * STEP, batch_size=2, dtype=F64, device=device)
    x = [leaf(2, 3, seed=i, device=device) for i in range(4)]
    sel = leaf(1, 3, 2, seed=9, device=device, high=2 * STEP)
    loss = 0.0
    for row in x:
        loss = loss + (synapse(row) ** 2).sum() + (synapse.current_at(sel) ** 2).sum()
    loss = loss + synapse.component_records()[0].value.sin().sum()
    first = torch.autograd.grad(loss, [*x, sel], retain_graph=True)
    second = torch.autograd.grad(loss, [*x, sel])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "name", ["step", "read", "scan", "scan_at", "shift", "events", "push", "peek", "extend"]
)
def test_gradients_of_gradients_are_refused(device, each_backend, name):
    """Also where the incoming gradient carries no graph, so that autograd would not notice."""
    tau = nn.Parameter(torch.tensor(5.0, dtype=F64, device=device))
    layer = DelayedLinear(
        3, 2, STEP, synapse=SingleExponentialCurrent.partialconstructor(1.0, tau),
        delay=2 * STEP, strategy="shift" if name == "shift" else "events",
        dtype=F64, device=device,
    )  # fmt: skip
    synapse, record = layer.synapse, layer.synapse.current_
    x = torch.rand(4, 1, 3, dtype=F64, device=device)
    times, value = leaf(1, 3, seed=1, device=device), leaf(1, 3, seed=2, device=device)
    record.push(value)
    wanted, run = {
        "step": (tau, lambda: synapse(x[0])),
        "read": (times, lambda: synapse.current_at(times)),
        "scan": (tau, lambda: synapse.scan(x)),
        "scan_at": (times, lambda: synapse.scan_at(x, times)[1]),
        "shift": (layer.weight, lambda: layer.scan(x)),
        "events": (layer.weight, lambda: layer.scan(x > 0.5)),
        "push": (value, lambda: record.value),
        "peek": (value, record.peek),
        "extend": (value, lambda: (record.extend(value.unsqueeze(0)), record.value)[1]),
    }[name]
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(run().sum(), wanted, create_graph=True)


@pytest.mark.parametrize("frozen", [False, True], ids=["step", "step_without_grad"])
def test_a_record_that_is_still_needed_is_not_overwritten_in_silence(device, each_backend, frozen):
    """What a user's operation has saved of the live record is lost with the next step."""
    synapse = make("single", 3, STEP, delay=2 * STEP, dtype=F64, device=device)
    x = leaf(1, 3, seed=0, device=device)
    synapse(x)
    loss = (synapse.current_.value**2).sum()
    with torch.set_grad_enabled(not frozen):
        synapse(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_that_are_shared_are_not_written_to(device, each_backend):
    """``old + noise``: the same gradient goes to every_kind, and the older record's is emptied."""
    record = RecordTensor(1.0, 2.0, torch.zeros(1, 3, dtype=F64, device=device), inclusive=True)
    factor = leaf(3, 1, 3, seed=1, device=device)
    noise = factor * 1.0  # older than the record's operations, so its backward runs last
    values = [leaf(1, 3, seed=2 + i, device=device) for i in range(3)]
    record.push(values[0])
    record.value = record.value + noise
    record.push(values[1])
    record.push(values[2])
    record.value.sum().backward()
    expected = torch.ones(3, 1, 3, dtype=F64, device=device)
    expected[1:] = 0  # both slots have been written since
    torch.testing.assert_close(factor.grad, expected, rtol=0, atol=0)
    assert [v.grad.unique().tolist() for v in values] == [[1.0]] * 3


# -- the selector ------------------------------------------------------------------------------


def test_a_gradient_that_a_hook_kept_stays_as_it_was(device, each_backend):
    """Later in the same backward pass the record's gradient is written in place."""
    record = RecordTensor(1.0, 3.0, torch.zeros(2, 3, dtype=F64, device=device))
    kept, copies = [], []
    for t in range(4):
        record.push(leaf(2, 3, seed=t, device=device))
        record.value.register_hook(kept.append)
        record.value.register_hook(lambda gradient: copies.append(gradient.clone()))
    sum((t + 1) * record.read(t % 3 + 1).sum() for t in range(4)).backward()
    assert len(kept) == len(copies) == 4
    for gradient, copied in zip(kept, copies, strict=True):
        assert torch.equal(gradient, copied)


def filled(kind, device, slots=4, **options):
    """A synapse with a past, and its components' observations, newest first."""
    synapse = make(kind, 3, STEP, delay=STEP * (slots - 1), dtype=F64, device=device, **options)
    for i in range(slots + 2):
        synapse(uniform(1, 3, seed=i).to(device))
    ago = [record.readrange(slots).flip(-1) for record in synapse.component_records()]
    return synapse, ago


SLOPES = {"single": (1 / 5,), "double": (1 / 6, -1 / 2), "alpha": (-1 / 3, 1 / 3)}
"""What each state counts in the derivative of a read to its time, at an observation."""


@every_kind
def test_at_observations_a_delay_has_the_derivative_from_the_left(device, each_backend, kind):
    synapse, ago = filled(kind, device)
    sel = (torch.arange(4, dtype=F64, device=device) * STEP).expand(1, 3, 4).clone()
    sel.requires_grad_()
    synapse.current_at(sel).sum().backward()
    expected = sum(slope * state for slope, state in zip(SLOPES[kind], ago, strict=True))
    torch.testing.assert_close(sel.grad, expected, rtol=1e-13, atol=1e-13)


@every_kind
@pytest.mark.parametrize("overbound", [None, 0.0, 2.0])
def test_outside_of_the_bounds_a_delay_has_no_derivative(device, each_backend, kind, overbound):
    synapse, _ = filled(kind, device, current_overbound=overbound)
    sel = torch.tensor([-1.0, -1e-9, 3 * STEP + 1e-9, 9.0], dtype=F64, device=device)
    sel = sel.expand(1, 3, 4).clone().requires_grad_()
    synapse.current_at(sel).sum().backward()
    assert not sel.grad.any()


@pytest.mark.parametrize("mode", ["previous", "nearest", "next"])
def test_modes_that_copy_have_no_derivative_to_the_time(device, each_backend, mode):
    synapse, _ = filled("single", device)
    sel = leaf(1, 3, 5, seed=0, device=device, high=3 * STEP)
    synapse.current_.select(sel, mode).sum().backward()
    assert not sel.grad.any()


def test_linear_reads_have_the_slope_of_their_segment(device, each_backend):
    synapse, (ago,) = filled("single", device)
    slopes = ago.diff() / STEP
    steps = torch.tensor([0.0, 0.4, 1.0, 2.0, 2.7, 3.0], dtype=F64, device=device)
    sel = (steps * STEP).expand(1, 3, 6).clone().requires_grad_()
    synapse.current_.select(sel, "linear").sum().backward()
    # At an observation the older segment's; the oldest observation has only the newer one.
    torch.testing.assert_close(sel.grad, slopes[..., [0, 0, 1, 2, 2, 2]], rtol=1e-12, atol=1e-12)


def test_a_function_of_the_users_own_is_differentiated(device, each_backend):
    synapse, (ago,) = filled("single", device)
    x = leaf(1, 3, seed=30, device=device)
    newest = synapse(x)
    sel = torch.full((1, 3), 0.4 * STEP, dtype=F64, device=device, requires_grad=True)

    def parabola(older, newer, sample_at, step_time):
        return older + (newer - older) * (sample_at / step_time) ** 2

    synapse.current_.select(sel, parabola).sum().backward()
    older = ago[..., 0]
    torch.testing.assert_close(sel.grad, -2 * 0.6 / STEP * (newest - older).detach())
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.6**2 * 10.0 / 5.0))


# -- what it costs -----------------------------------------------------------------------------


@every_kind
def test_memory_kept_for_backward_does_not_grow_with_the_record(device, kind):
    def kept(slots):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        parameters = {
            name: nn.Parameter(torch.tensor(tau, dtype=F64, device=device))
            for name, tau in list(PHYSICS[kind].items())[1:]
        }
        synapse = make(
            kind, 3, STEP, delay=STEP * (slots - 1), dtype=F64, device=device, **parameters
        )
        sel = leaf(1, 3, seed=1, device=device)
        synapse(sel)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            for _ in range(5):
                synapse(sel)
                synapse.current_at(sel)
        return total

    assert 0 < kept(2) == kept(100)


def enough(backend, dtype):
    """So many ones do not add up one by one; the interpreter takes its time for each."""
    if backend == "reference":
        return 3000
    if dtype == torch.float16:
        pytest.skip("2,048 are too many for the interpreter")
    return 270


slow_in_the_interpreter = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("triton", marks=pytest.mark.slow)]
)


@slow_in_the_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_gradients_of_one_observation_are_rounded_once(device, each_backend, dtype):
    """One by one, ones would add up to no more than 256 in bfloat16, and 2048 in float16."""
    count = enough(each_backend, dtype)
    options = {"dtype": dtype, "device": device, "time_constant": 1.0, "spike_charge": 1.0}
    synapse = make("single", shape=1, delay=1.0, **options)
    x = torch.ones(1, 1, dtype=dtype, device=device, requires_grad=True)
    synapse(x)
    synapse.current_at(
        torch.zeros(1, 1, count, dtype=dtype, device=device)
    ).float().sum().backward()
    assert x.grad.item() == pytest.approx(count, rel=2**-8)


@slow_in_the_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_gradients_of_a_sequence_are_rounded_once(device, each_backend, dtype):
    count = enough(each_backend, dtype)
    sequence = torch.zeros(3, 1, 1, dtype=dtype, device=device, requires_grad=True)
    times = torch.zeros(1, 1, count, dtype=dtype, device=device)
    rule = ReadRule("previous", 1.0, 1.0)
    functional.select_scan((sequence,), times, (None,), rule, 2).float().sum().backward()
    expected = pytest.approx([0.0, count, count], rel=2**-8)
    assert sequence.grad.flatten().tolist() == expected


def test_a_read_that_is_not_used_copies_no_gradient(device, each_backend):
    """Nor does what a step costs grow with the record for it."""
    synapse = make("single", delay=50.0, device=device)
    x = torch.rand(1, 3, device=device, requires_grad=True)
    total = 0.0
    for _ in range(4):
        total = total + synapse(x).sum()
        synapse.current_at(torch.ones(1, 3, device=device))

    class Clones(TorchDispatchMode):
        sizes: ClassVar[list[int]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.clone.default:
                self.sizes.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    with Clones():
        total.backward()
    assert max(Clones.sizes, default=0) < synapse.current_.storage.numel()


def test_forward_mode_is_refused(device, each_backend):
    """Kernels would drop the derivative without a word."""
    synapse = make("single", delay=2.0, device=device)
    x = torch.rand(4, 1, 3, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        wider = dual.expand(4, 2, 3)  # which the batch would follow
        for call in (lambda: synapse.scan(wider), lambda: synapse(dual[0])):
            with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
                call()
    assert synapse.batchsz == 1 and synapse.spike_.at_rest


def transformed():
    """Operations inside of transforms: of their input ``[4, 1, 3]``, and of a synapse."""
    rule = ReadRule("previous", 1.0, 2.0)
    calls = {
        "step": lambda x, synapse: synapse(x[0]),
        "scan": lambda x, synapse: synapse.scan(x),
        "delayed read": lambda x, synapse: synapse.current_at(x[0]),
        "read of spikes": lambda x, synapse: synapse.spike_at(x[0]),
        "push": lambda x, synapse: functional.push(synapse.current_.storage, x[0], 0),
        "push of spikes": lambda x, synapse: functional.push(synapse.spike_.storage, x[0], 0),
        "write": lambda x, synapse: write_rows(synapse.spike_.storage, x[:2], 0),
        "read": lambda x, synapse: functional.read(synapse.current_.storage, 0)[1] * x[0],
        "pack": lambda x, synapse: functional.pack_spikes(x).words,
        "reads of a sequence": lambda x, synapse: select_scan((x,), x[0], (None,), rule, 2),
        "layer": lambda x, synapse: functional.delayed_linear(
            x, x[0], x[1], decay=0.5, max_delay=2.0
        )[0],
    }
    transforms = {
        "vmap": lambda call, x: torch.vmap(call)(x.expand(2, *x.shape)),
        "grad": lambda call, x: torch.func.grad(lambda x: call(x).sum())(x),
        "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
        "functionalize": lambda call, x: torch.func.functionalize(call)(x),
    }
    for name, call in calls.items():
        for kind, transform in transforms.items():
            if kind == "vmap" or name in ("step", "scan", "push"):
                yield pytest.param(call, transform, id=f"{kind} of {name}")


@pytest.mark.parametrize(("call", "transform"), list(transformed()))
@pytest.mark.parametrize("inplace", [False, True])
def test_transforms_are_refused_before_anything_is_written(call, transform, inplace):
    synapse = make("single", delay=2.0, inplace=inplace)
    synapse(torch.ones(1, 3))
    before = snapshot(synapse)
    advice = "use the batch axis instead of vmap, and torch.autograd.grad instead of torch.func"
    with torch.set_grad_enabled(not inplace), pytest.raises(NotImplementedError, match=advice):
        transform(lambda x: call(x, synapse), torch.ones(4, 1, 3))
    assert same(snapshot(synapse), before)


def test_functional_call_works():
    synapse = make("single", delay=2.0, time_constant=nn.Parameter(torch.tensor(5.0)))
    tau = torch.tensor(3.0, requires_grad=True)
    x = spikes(6, 1, 3)

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.synapse = synapse

        def forward(self, x):
            return self.synapse.scan(x)

    y = torch.func.functional_call(Scan(), {"synapse.time_constant": tau}, (x,))
    other = make("single", delay=2.0, time_constant=nn.Parameter(torch.tensor(3.0)))
    wanted = other.scan(x)
    assert torch.equal(y, wanted)
    gradients = [
        torch.autograd.grad(v.sum(), t)[0] for v, t in ((y, tau), (wanted, other.time_constant))
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["scan", "push", "step", "layer"])
@pytest.mark.parametrize("functorch", [False, True])
def test_batched_gradients_are_refused(name, functorch):
    x = torch.ones(3, 1, 2, requires_grad=True)
    one = torch.ones(())
    marks = torch.zeros(2, 1, 2, dtype=torch.bool)
    y = {
        "scan": lambda: functional.exp_scan(x, 0.5)[0],
        "push": lambda: functional.push(torch.zeros(2, 1, 2), x[0], 0),
        "step": lambda: functional.step(
            x[0], Ring((torch.zeros(2, 1, 2),), (0,), marks, 0), one, (one,)
        )[0],
        "layer": lambda: functional.delayed_linear(
            x, torch.ones(2, 2), torch.ones(2, 2), decay=0.5, max_delay=1.0
        )[0],
    }[name]()
    many = torch.ones(4, *y.shape)
    with pytest.raises(NotImplementedError, match="no batched gradients; call backward or grad"):
        if functorch:
            torch.vmap(lambda dy: torch.autograd.grad(y, x, dy)[0])(many)
        else:
            torch.autograd.grad(y, x, many, is_grads_batched=True)


def test_nobody_in_a_batch_reads_nothing_backward(device, each_backend):
    record = torch.zeros(3, 0, 2, device=device, requires_grad=True)
    sel = torch.zeros(1, 2, device=device, requires_grad=True)
    rule = ReadRule("linear", 1.0, 2.0)
    value, _ = functional.select((record * 1,), sel, (None,), (0,), rule)
    value.sum().backward()
    assert not sel.grad.any() and record.grad.shape == record.shape


# -- results may be written in place ---------------------------------------------------------------


def _outputs(x, sel, tau, capturable):
    """Everything that one use of the package returns with a graph, by name."""
    device = x.device
    physics = {"spike_charge": 5.0, "time_constant": tau}
    options = {"batch_size": 2, "device": device, "capturable": capturable}
    synapse = SingleExponentialCurrent((2, 3), 1.0, delay=2.0, **physics, **options)
    yield "step", synapse(x[0])
    yield "current", synapse.current
    yield "current_at", synapse.current_at(sel)
    yield "scan", synapse.scan(x)
    currents, delayed = synapse.scan_at(x, sel)
    yield "scan_at", currents
    yield "scan_at, delayed", delayed
    record = synapse.current_
    for mode in ("nearest", "linear", functional.interp_linear, lambda a, b, at, dt: a):
        yield f"select {mode}", record.select(sel[..., 0].expand(2, 2, 3), mode)
    yield "select one time", record.select(1.0)
    yield "readrange", record.readrange(2)
    flat = x.flatten(2)
    for name, output in zip(("y", "final"), functional.exp_scan(flat, 0.5), strict=True):
        yield f"exp_scan, {name}", output
    for strategy in ("shift", "gemm"):
        make_synapse = SingleExponentialCurrent.partialconstructor(**physics)
        layer = DelayedLinear(
            6, 3, 1.0, synapse=make_synapse, delay=2.0, strategy=strategy, **options
        )
        yield f"layer, {strategy}", layer.scan(flat)
        yield f"layer, {strategy}, step", layer(flat[0])
    spikes = functional.pack_spikes(flat.detach() > 0.5)
    weight, delay = leaf(3, 6, seed=3, device=device), leaf(3, 6, seed=4, device=device)
    y, (history,) = functional.delayed_linear(spikes, weight, delay, decay=tau / 5, max_delay=2.0)
    yield "delayed_linear", y
    yield "delayed_linear, final", history


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("steps", [2, 110])
def test_results_may_be_written_in_place(device, each_backend, capturable, steps):
    """As those of PyTorch's own operations; each is memory of its own."""
    if each_backend == "triton" and steps > 2:
        pytest.skip("only the reference takes long sequences in another way")
    x = uniform(steps, 2, 2, 3, seed=1).to(device).requires_grad_()
    sel = uniform(1, 2, 3, 4, seed=2, high=2.0).to(device).requires_grad_()
    tau = nn.Parameter(torch.tensor(4.0, device=device))

    def run(thrice):
        torch.manual_seed(0)
        outputs = list(_outputs(x, sel, tau, capturable))
        values = {name: output.detach().clone() for name, output in outputs}
        changed = {name: thrice(output) for name, output in outputs}
        for name, output in changed.items():
            assert torch.equal(output, 3.0 * values[name]), name
        total = sum(output.double().sin().sum() for output in changed.values())
        return torch.autograd.grad(total, (x, sel, tau))

    plain, in_place = run(lambda output: output * 3.0), run(lambda output: output.mul_(3.0))
    # Records are float32, and are rounded in every step; a GPU may sum in another order each time.
    digits = (8 + steps) * torch.finfo(torch.float32).eps
    for a, b in zip(in_place, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=digits * b.abs().max().item())


# -- what else looks at the gradient of a record ---------------------------------------------------


def watched(watch):
    """Three observations pushed and read, each record shown to ``watch``; input, record, loss, and
    by hand the gradient of each record at the time."""
    x, weights = torch.ones(3, 1, 2, requires_grad=True), torch.arange(1.0, 7.0).view(3, 1, 2)
    record, total = torch.zeros(4, 1, 2).clone(), 0.0
    expected = [torch.full((4, 1, 2), 2.0) for _ in range(3)]
    for t in range(3):
        record = functional.push(record, x[t] * (t + 1), t)
        watch(record)
        record, value = functional.read(record, t)
        total = total + (value * weights[t]).sum()
        expected[t][t] += weights[t]
        for earlier in range(t):  # what is pushed later replaces what was there
            expected[earlier][t] = 0.0
    steps = torch.arange(1.0, 4.0).view(3, 1, 1)
    return x, record, total + 2 * record.clone().sum(), expected, (weights + 2) * steps


def check_seen(seen, expected):
    assert len(seen) == len(expected)
    for gradient, wanted in zip(seen, expected, strict=True):
        assert torch.equal(gradient, wanted)


def test_hooks_on_a_record_may_keep_its_gradient():
    seen = []
    x, _, loss, expected, dx = watched(lambda record: record.register_hook(seen.append))
    loss.backward()
    check_seen(seen[::-1], expected)
    assert torch.equal(x.grad, dx)


def test_a_hook_on_several_tensors_may_keep_their_gradients():
    seen = []

    def watch(record):
        torch.autograd.graph.register_multi_grad_hook((record,), lambda gs: seen.append(gs[0]))

    x, _, loss, expected, dx = watched(watch)
    loss.backward()
    check_seen(seen[::-1], expected)
    assert torch.equal(x.grad, dx)


def test_a_hook_may_replace_the_gradient_of_a_record():
    _, _, loss, _, dx = watched(lambda record: None)
    x, _, loss, _, _ = watched(lambda record: record.register_hook(lambda g: g * 1.0))
    loss.backward()
    assert torch.equal(x.grad, dx)


def test_the_gradient_of_a_record_in_the_middle_can_be_asked_for():
    """Together with that of what comes before it."""
    edges = []
    x, _, loss, expected, dx = watched(
        lambda record: edges.append(torch.autograd.graph.get_gradient_edge(record))
    )
    *seen, last = torch.autograd.grad(loss, [*edges, x])
    check_seen(seen, expected)
    assert torch.equal(last, dx)


def test_the_newest_record_retains_its_gradient():
    x, record, loss, _, dx = watched(lambda record: record.retain_grad())
    loss.backward()
    assert torch.equal(record.grad, torch.full((4, 1, 2), 2.0))
    assert torch.equal(x.grad, dx)


@every_kind
def test_hooks_on_the_records_of_a_synapse_keep_what_they_saw(kind, each_backend, device):
    """Of steps and delayed reads: the same while the backward pass runs and afterwards."""
    synapse = make(kind, delay=2.0, device=device)
    kept, copied = [], []

    def hook(gradient):
        kept.append(gradient)
        copied.append(gradient.clone())

    total = 0.0
    x = torch.ones(1, 3, device=device, requires_grad=True)
    for _ in range(3):
        total = total + synapse(x).sum()
        for record in synapse.component_records():
            record.storage.register_hook(hook)
        total = total + synapse.current_at(torch.full((1, 3), 0.5, device=device)).sum()
    total.backward()
    assert len(kept) == 3 * len(synapse.component_records())
    assert all(torch.equal(a, b) for a, b in zip(kept, copied, strict=True))


def test_a_record_that_nobody_watches_is_not_copied_in_backward():
    """The chain has one gradient of its size, whatever its length."""

    class Sizes(TorchDispatchMode):
        found: ClassVar[list[int]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape == (5, 1, 7):
                if function.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.zeros):
                    self.found.append(1)
            return result

    x, record = torch.ones(1, 7, requires_grad=True), torch.zeros(5, 1, 7)
    total = 0.0
    for t in range(5):
        record = functional.push(record, x, t)
        record, value = functional.read(record, t)
        total = total + value.sum()
    with Sizes() as sizes:
        total.backward()
    assert len(sizes.found) == 1 and torch.equal(x.grad, torch.full((1, 7), 5.0))
