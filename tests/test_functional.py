"""The stateless functions: interpolations, and the operations on records."""

import math
import re
import subprocess
import sys

import pytest
import torch
from synapses import gradcheck, make, same, snapshot, spikes, uniform
from torch.utils._pytree import tree_flatten

from tritonsyn import functional
from tritonsyn.functional import ReadRule, Ring

F32, F64 = torch.float32, torch.float64
KEYWORDS = {
    "previous": {},
    "nearest": {},
    "next": {},
    "linear": {},
    "expdecay": {"time_constant": 3.0},
    "expratedecay": {"rate_constant": 0.4},
}
modes = pytest.mark.parametrize("mode", KEYWORDS)


# -- interpolations -------------------------------------------------------------------------------


@modes
def test_interpolation_against_inferno(mode, device):
    """Values, and gradients to both observations and to the time."""
    theirs = getattr(pytest.importorskip("inferno.functional"), f"interp_{mode}")
    ours = getattr(functional, f"interp_{mode}")
    shape, dt = (4, 5, 6), 0.7
    inputs = [uniform(*shape, seed=seed, low=-1.0).to(device) for seed in (1, 2)]
    inputs.append(uniform(*shape, seed=3, high=dt).to(device))
    results = []
    for function in (ours, theirs):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        value = function(*given, dt, **KEYWORDS[mode])
        grads = torch.autograd.grad(value.square().sum(), given, allow_unused=True)
        results.append((value, *(torch.zeros_like(value) if g is None else g for g in grads)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-14)


@modes
def test_interpolation_at_both_ends_and_in_the_middle(mode):
    older, newer = torch.tensor([2.0], dtype=F64), torch.tensor([4.0], dtype=F64)
    at = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64)
    decay, rate = math.exp(-1 / 3), math.exp(-0.4)
    expected = {
        "previous": [2.0, 2.0, 2.0, 2.0],
        "next": [4.0, 4.0, 4.0, 4.0],
        "nearest": [2.0, 2.0, 4.0, 4.0],
        "linear": [2.0, 2.0 + 2.0 / 3, 2.0 + 4.0 / 3, 4.0],
        "expdecay": [2.0 * decay**t for t in range(4)],
        "expratedecay": [2.0 * rate**t for t in range(4)],
    }[mode]
    value = getattr(functional, f"interp_{mode}")(older, newer, at, 3.0, **KEYWORDS[mode])
    torch.testing.assert_close(value.expand(4), torch.tensor(expected, dtype=F64))
    middle = torch.tensor([1.5], dtype=F64)
    assert functional.interp_nearest(older, newer, middle, 3.0) == 2.0


@pytest.mark.parametrize("mode", ["previous", "nearest", "next"])
def test_interpolation_of_spikes(mode):
    older, newer = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    value = getattr(functional, f"interp_{mode}")(older, newer, torch.full((3,), 0.7), 1.0)
    assert value.dtype == torch.bool
    assert torch.equal(value, older if mode == "previous" else newer)


@modes
def test_interpolation_ignores_other_keywords(mode):
    """So that one set of keywords serves every mode."""
    data = [torch.ones(2), torch.zeros(2), torch.full((2,), 0.3)]
    keywords = {"time_constant": 3.0, "rate_constant": 0.4, "other": None}
    function = getattr(functional, f"interp_{mode}")
    assert torch.equal(function(*data, 1.0, **keywords), function(*data, 1.0, **KEYWORDS[mode]))


@pytest.mark.parametrize(("mode", "name"), [("expdecay", "time"), ("expratedecay", "rate")])
def test_interpolation_without_its_constant(mode, name):
    with pytest.raises(TypeError, match=f"{name}_constant"):
        getattr(functional, f"interp_{mode}")(torch.ones(2), torch.ones(2), torch.ones(2), 1.0)


def test_interpolation_with_a_constant_for_each_element():
    data, at = torch.ones(2, 3, dtype=F64), torch.full((2, 3), 0.5, dtype=F64)
    tau = torch.tensor([1.0, 2.0, 4.0], dtype=F64, requires_grad=True)
    value = functional.interp_expdecay(data, data, at, 1.0, time_constant=tau)
    torch.testing.assert_close(value, torch.exp(-0.5 / tau).expand(2, 3))
    (grad,) = torch.autograd.grad(value.sum(), tau)
    torch.testing.assert_close(grad, 2 * (0.5 / tau**2 * torch.exp(-0.5 / tau)).detach())


# -- push and read --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_push_and_read(dtype, each_backend, device):
    record = torch.zeros(3, 2, 4, dtype=dtype, device=device)
    value = spikes(2, 4, seed=1).to(device)
    out = functional.push(record, value, 1)
    assert out is record  # in place
    assert torch.equal(record[1], value.to(dtype)) and not record[::2].any()
    again, read = functional.read(record, 1)
    assert again is record and torch.equal(read, record[1])
    read.zero_()
    assert torch.equal(record[1], value.to(dtype))


def test_gradients_of_push_and_read(each_backend, device):
    def program(initial, a, b):
        record = functional.push(initial * 2.0, a, 0)
        record, first = functional.read(record, 0)
        record = functional.push(record, b * first, 0)  # replaces the first
        record, second = functional.read(record, 0)
        return first, second, record.square()

    inputs = [uniform(2, 1, 3, seed=0).to(device)]
    inputs += [uniform(1, 3, seed=seed).to(device) for seed in (1, 2)]
    assert gradcheck(program, [x.requires_grad_() for x in inputs])


RECORD, VALUE = torch.zeros(3, 2, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("record", "value", "slot", "error", "words"),
    [
        (RECORD, VALUE, 3, IndexError, "slot is 3, but the record has slots 0 to 2"),
        (RECORD, VALUE, -1, IndexError, "slot is -1, but the record has slots 0 to 2"),
        (RECORD, VALUE[:1], 0, ValueError, "value has shape (1, 4), but must have (2, 4)"),
        (RECORD, VALUE.cfloat(), 0, TypeError, "value must be bool, integer or floating, but is t"),
        (RECORD, 1.0, 0, TypeError, "value must be a tensor, but a float was given"),
        (RECORD.int(), VALUE, 0, TypeError, "record is torch.int32, but records are kept in"),
        (RECORD[0, 0], VALUE, 0, ValueError, "record has shape (4,), but must have (K, B, ...)"),
        (RECORD.transpose(1, 2), VALUE.t(), 0, ValueError, "but must be contiguous"),
        ([1.0], VALUE, 0, TypeError, "record must be a tensor, but a list was given"),
    ],
)
def test_errors_of_push(record, value, slot, error, words):
    with pytest.raises(error, match=re.escape(words)):
        functional.push(record, value, slot)
    assert not RECORD.any()


@pytest.mark.parametrize(
    ("record", "slot", "error", "words"),
    [
        (RECORD, 3, IndexError, "slot is 3, but the record has slots 0 to 2"),
        (RECORD, -4, IndexError, "slot is -4, but the record has slots 0 to 2"),
        (RECORD, 1.5, TypeError, "slot must be an integer, but is 1.5"),
        (RECORD, None, TypeError, "slot must be an integer, but is None"),
        (RECORD, torch.tensor([0, 1]), ValueError, "slot has shape (2,), but must be one slot"),
        ("x", 0, TypeError, "record must be a tensor, but a str was given"),
        (torch.zeros(()), 0, ValueError, "record has shape (), but must have (K, B, ...), K >= 1"),
        (torch.zeros(0, 2), 0, ValueError, "record has shape (0, 2), but must have (K, B, ...)"),
        (RECORD.int(), 0, TypeError, "record is torch.int32, but records are kept in"),
    ],
)
def test_errors_of_read(record, slot, error, words):
    with pytest.raises(error, match=re.escape(words)):
        functional.read(record, slot)


# -- step -----------------------------------------------------------------------------------------


def ring(components=1, slots=3, shape=(2, 4), dtype=F64, device="cpu", seed=0):
    """Random records whose pointers all differ."""
    records = tuple(
        uniform(slots, *shape, seed=seed + i).to(device=device, dtype=dtype)
        for i in range(components)
    )
    pointers = tuple((1 + i) % slots for i in range(components))
    marks = torch.zeros(slots, *shape, dtype=torch.bool, device=device)
    return Ring(records, pointers, marks, slots - 1)


def constants(count, shape, per_synapse, device):
    """Gain and decays: numbers for the group, or one for each synapse."""
    size = shape if per_synapse else ()
    values = [uniform(*size, seed=seed, low=0.3, high=0.9) for seed in range(1 + count)]
    gain, *decays = (value.to(device) for value in values)
    return gain, decays


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("per_synapse", [False, True])
def test_step(count, per_synapse, each_backend, device):
    """``C' = decay * C + gain * x`` into the slot of the pointer, from the slot before it."""
    state = ring(count, device=device)
    before = [record.clone() for record in state.components]
    gain, decays = constants(count, (4,), per_synapse, device)
    x = uniform(2, 4, seed=5, low=-1.0).to(device)
    y, records = functional.step(x, state, gain, decays)
    expected = []
    for record, old, pointer, decay in zip(records, before, state.pointers, decays, strict=True):
        new = old[pointer - 1] * decay + gain * x
        torch.testing.assert_close(record[pointer], new, rtol=1e-15, atol=1e-15)
        others = [slot for slot in range(3) if slot != pointer]
        assert torch.equal(record[others], old[others])
        expected.append(new)
    assert all(a is b for a, b in zip(records, state.components, strict=True))
    torch.testing.assert_close(
        y, expected[0] if count == 1 else expected[0] - expected[1], rtol=1e-14, atol=1e-15
    )
    assert state.spikes[2].all() and not state.spikes[:2].any()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("per_synapse", [False, True])
def test_gradients_of_step(count, per_synapse, each_backend, device):
    """Two steps in a record of two slots: to input, gain, decays and what the record held."""
    gain, decays = constants(count, (3,), per_synapse, device)

    def program(x, gain, *rest):
        decays, initial = rest[:count], rest[count:]
        records = tuple(record * 1.0 for record in initial)
        state = ring(count, 2, (1, 3), device=device)
        pointers = (0,) * count
        outputs = []
        for t in range(2):
            state = Ring(records, pointers, state.spikes, t)
            y, records = functional.step(x * (t + 1), state, gain, decays)
            pointers = tuple(1 - pointer for pointer in pointers)
            outputs.append(y)
        return *outputs, *records

    initial = [uniform(2, 1, 3, seed=seed).to(device) for seed in (7, 8)][:count]
    inputs = [uniform(1, 3, seed=6).to(device), gain, *decays, *initial]
    assert gradcheck(program, [tensor.requires_grad_() for tensor in inputs])


def test_step_without_graph(device):
    state = ring(device=device)
    gain, decays = constants(1, (4,), False, device)
    x = torch.ones(2, 4, dtype=F64, device=device, requires_grad=True)
    y, (record,) = functional.step(x, state, gain, decays, graph=False)
    assert not y.requires_grad and not record.requires_grad


# -- select ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("per_synapse", [False, True])
def test_select(count, per_synapse, each_backend, device):
    """Each component from its own pointer with its own rate; the first minus the second."""
    state = ring(count, slots=4, device=device)
    size = (4,) if per_synapse else ()
    rates = [uniform(*size, seed=seed, low=0.1, high=0.5).to(device) for seed in range(count)]
    sel = torch.tensor([0.0, 0.4, 1.0, 2.7, 3.0, 3.2], dtype=F64, device=device)
    sel = (sel * 0.5).expand(2, 4, 6)  # half a time unit each step
    rule = ReadRule("expdecay", 0.5, 1.5, 0.0, -1.0)
    value, records = functional.select(state.components, sel, rates, state.pointers, rule)
    assert all(a is b for a, b in zip(records, state.components, strict=True))
    older, part = [0, 1, 1, 3, 3], [0.0, 0.6, 0.0, 0.3, 0.0]
    expected = torch.full((2, 4, 6), -1.0, dtype=F64, device=device)
    for i, (o, f) in enumerate(zip(older, part, strict=True)):
        taps = [
            record[(pointer - 1 - o) % 4] * torch.exp(-f * rate)
            for record, pointer, rate in zip(records, state.pointers, rates, strict=True)
        ]
        expected[..., i] = taps[0] if count == 1 else taps[0] - taps[1]
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("count", "overbound", "broadcast"),
    [(1, 0.0, True), (1, None, False), (2, 0.0, False), (2, None, True)],
)
def test_gradients_of_select(count, overbound, broadcast, each_backend, device):
    """To the records, the times and the rates; none where the time is out of bounds."""
    rule = ReadRule("expdecay", 0.5, 1.0, 0.0, overbound)
    pointers = (1, 0)[:count]

    def program(sel, *rest):
        rates, initial = rest[:count], rest[count:]
        records = tuple(record * 1.0 for record in initial)
        value, records = functional.select(records, sel, rates, pointers, rule)
        return value, *records

    sel = uniform(1 if broadcast else 2, 2, 3, seed=3, low=-0.4, high=1.4)
    rates = [uniform(2, seed=seed, low=0.1, high=0.5) for seed in range(count)]
    initial = [uniform(3, 2, 2, seed=5 + seed) for seed in range(count)]
    inputs = [tensor.to(device).requires_grad_() for tensor in (sel, *rates, *initial)]
    assert gradcheck(program, inputs)


def test_slopes_at_an_observation(each_backend, device):
    """From the left: of the older segment for ``linear``, ``value / tau`` for ``expdecay``."""
    record = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=F64, device=device).view(4, 1, 1)
    sel = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]], dtype=F64, device=device, requires_grad=True)
    newest_first = torch.tensor([9.0, 4.0, 2.0, 1.0], dtype=F64, device=device)
    expected = {
        "linear": torch.tensor([-5.0, -2.0, -1.0, -1.0], dtype=F64, device=device),
        "expdecay": newest_first * 0.25,
        "previous": torch.zeros(4, dtype=F64, device=device),
        "nearest": torch.zeros(4, dtype=F64, device=device),
        "next": torch.zeros(4, dtype=F64, device=device),
    }
    rate = torch.tensor(0.25, dtype=F64, device=device)
    for mode, slopes in expected.items():
        rule = ReadRule(mode, 1.0, 3.0)
        rates = (rate if mode == "expdecay" else None,)
        value, _ = functional.select((record,), sel, rates, (0,), rule)
        assert torch.equal(value.detach().flatten(), newest_first), mode
        (grad,) = torch.autograd.grad(value.sum(), sel)
        torch.testing.assert_close(grad.flatten(), slopes, rtol=1e-15, atol=0)


def test_gradients_are_the_same_on_a_second_backward(each_backend, device):
    """Backward changes nothing that a further one through the same graph needs."""
    state = ring(1, device=device)
    gain, decays = constants(1, (4,), True, device)
    x = uniform(2, 4, seed=5).to(device).requires_grad_()
    gain.requires_grad_(), decays[0].requires_grad_()
    y, records = functional.step(x, state, gain, decays)
    sel = torch.full((2, 4), 0.5, dtype=F64, device=device)
    rate = torch.tensor(0.2, dtype=F64, device=device)
    rule = ReadRule("expdecay", 1.0, 2.0)
    value, records = functional.select(records, sel, (rate,), (2,), rule)
    total = y.square().sum() + value.sum() + records[0].square().sum()
    inputs = (x, gain, decays[0])
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    second = torch.autograd.grad(total, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- negated views --------------------------------------------------------------------------------

NEGATED = {
    "push": lambda x, p: functional.push(torch.zeros(3, 2, 4), x[0], 1),
    "push of spikes": lambda x, p: functional.push(torch.zeros(3, 2, 4, dtype=torch.bool), x[0], 1),
    "step": lambda x, p: functional.step(x[0], ring(2, dtype=F32), p[1, 0], [p[2, 0]] * 2)[0],
    "select": lambda x, p: functional.select(
        (spikes(3, 2, 4).float(),), p[0], (p[1, 0],), (0,), ReadRule("expdecay", 1.0, 2.0)
    )[0],
    "select_scan": lambda x, p: functional.select_scan(
        (x,), p[0], (None,), ReadRule("linear", 1.0, 2.0), 1
    ),
    "scan": lambda x, p: functional.exp_scan(x, p[0, 0], p[1, 0], x[2]),
    "pack": lambda x, p: functional.pack_spikes(x).words,
    "layer": lambda x, p: functional.delayed_linear(
        x, x[0], p[1], decay=p[2, 0], initial=(x,), max_delay=2.0, strategy="shift"
    ),
    "dense layer": lambda x, p: functional.delayed_linear(
        x, x[0], p[1], decay=p[2, 0], initial=(x,), max_delay=2.0, strategy="gemm"
    ),
    "synapse": lambda x, p: [s := make("double", 4, batch_size=2, delay=2.0), s(x[0]), s.spike],
    "synapse, scan": lambda x, p: [s := make("alpha", 4, batch_size=2), s.scan(x), s.spike],
}
"""Calls of two tensors ``[3, 2, 4]`` of both signs, and of positive numbers below 1."""


@pytest.mark.parametrize("name", NEGATED)
def test_negated_views_count_as_what_they_stand_for(name, each_backend, device):
    """PyTorch negates them when they are read; kernels read memory as it is."""
    plain = [(uniform(3, 2, 4, seed=i, low=low) * 0.99).to(F32) for i, low in ((1, -1.0), (2, 0.0))]
    plain = [tensor.round(decimals=1) for tensor in plain]  # with zeros among them
    views = [torch._neg_view(-tensor) for tensor in plain]
    assert all(view.is_neg() and view.is_contiguous() for view in views)
    results = []
    for given in (views, plain):
        tensors, _ = tree_flatten(NEGATED[name](*given))
        results.append([t for t in tensors if isinstance(t, torch.Tensor)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_gradient_may_be_a_negated_view(each_backend, device):
    grads = []
    for negate in (True, False):
        x = torch.ones(3, 2, 4, device=device, requires_grad=True)
        y, _ = functional.exp_scan(x, 0.5)
        state = Ring(
            (torch.zeros(3, 2, 4, device=device),), (0,),
            torch.zeros(3, 2, 4, dtype=torch.bool, device=device), 0,
        )  # fmt: skip
        one, half = torch.ones((), device=device), torch.full((), 0.5, device=device)
        z, _ = functional.step(x[0], state, one, (half,))
        dy = -uniform(3, 2, 4, seed=2).to(device, F32)
        dy = torch._neg_view(-dy) if negate else dy
        grads.append(torch.autograd.grad([y, z], x, [dy, dy[0]])[0])
    assert torch.equal(*grads)


def test_state_cannot_be_a_negated_view():
    record = torch._neg_view(torch.ones(3, 2, 4))
    with pytest.raises(ValueError, match="record is a negated view, which cannot be written"):
        functional.push(record, torch.ones(2, 4), 0)


@pytest.mark.parametrize("dtype", [torch.bits8, torch.float4_e2m1fn_x2], ids=str)
def test_a_step_that_fails_has_written_nothing(dtype, each_backend):
    """On values that cannot be computed with, which no check knows."""
    state = ring(2, dtype=torch.bfloat16)
    carries = [torch.ones(2, 4) for _ in range(2)]
    state = state._replace(carries=carries)
    written = [*state.components, state.spikes, *carries]
    before = [tensor.clone() for tensor in written]
    x = torch.ones(2, 4, dtype=torch.uint8).view(dtype)
    half = torch.tensor(0.5)
    with pytest.raises(Exception, match=r"."):
        functional.step(x, state, half, (half, half))
    assert all(torch.equal(a, b) for a, b in zip(before, written, strict=True))


# -- refusals -------------------------------------------------------------------------------------

REFUSED_STEPS = [
    ({"x": torch.ones(2, 5)}, "x has shape"),
    ({"x": torch.ones(2, 4, dtype=torch.complex64)}, "x must be bool"),
    ({"gain": torch.ones(3)}, "gain has shape"),
    ({"decays": ()}, "decays must be 1"),
    ({"components": (torch.ones(3, 4, 2).transpose(1, 2),)}, "must be contiguous"),
    ({"components": (torch.ones(3, 2, 4, dtype=torch.int64),)}, "ring.components is torch.int64"),
    ({"pointers": (3,)}, "pointer of ring.components is 3"),
    ({"spikes": torch.zeros(3, 2, 5, dtype=torch.bool)}, "ring.spikes has shape"),
    ({"spike_pointer": -1}, "pointer of ring.spikes is -1"),
    (
        {"components": (torch.zeros(3, 2, 4, dtype=torch.bool),)},
        "ring.components must be a dense f",
    ),
    ({"components": torch.ones(3, 2, 4)}, "ring.components must be a sequence"),
    ({"spikes": torch.zeros(3, 2, 4)}, "ring.spikes must be torch.bool, but is torch.float32"),
    ({"pointers": (1.5,)}, "pointer of ring.components must be an integer, but is 1.5"),
    ({"pointers": None}, "pointers of ring.components must be a sequence, but is None"),
    ({"pointers": (torch.tensor(1.0),)}, "must be an integer, but is tensor"),
    ({"pointers": (torch.tensor([0, 1]),)}, r"has shape \(2,\), but must be one slot"),
    ({"gain": 1.0}, "gain must be a dense floating tensor, but is float"),
    ({"decays": (0.5,)}, "decays must be a dense floating tensor, but is float"),
    ({"decays": 0.5}, "decays must be a sequence of 1, but is 0.5"),
    ({"arrivals": 0}, "ring.arrivals must be a tensor, but a int was given"),
    ({"arrivals": torch.zeros(2)}, r"ring.arrivals has shape \(2,\), but must have \(\)"),
    ({"arrivals": torch.zeros(())}, "ring.arrivals must be torch.int32, but is torch.float32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_STEPS, ids=lambda v: str(v)[:24])
def test_step_refuses_and_changes_nothing(change, message):
    state = Ring((torch.ones(3, 2, 4),), (0,), torch.zeros(3, 2, 4, dtype=torch.bool), 0)
    given = {"x": torch.ones(2, 4), "gain": torch.ones(()), "decays": (torch.ones(()),)}
    given |= {name: value for name, value in change.items() if name in given}
    state = state._replace(**{n: v for n, v in change.items() if n not in given})
    before = [*(record.clone() for record in state.components), state.spikes.clone()]
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        functional.step(given["x"], state, given["gain"], given["decays"])
    after = [*state.components, state.spikes]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


REFUSED_READS = [
    ({"sel": torch.ones(2, 5)}, "sel has shape"),
    ({"sel": torch.ones(2, 4, dtype=torch.bool)}, "sel must be floating or integer"),
    ({"rule": None}, "rule must be a ReadRule, but is None"),
    ({"rates": (None,)}, "rates must be tensors"),
    ({"rates": None}, "rates must be a sequence of 1, but is None"),
    ({"rates": (torch.ones(()), torch.ones(()))}, "rates must be 1"),
    ({"rates": (torch.ones(2),)}, "rates has shape"),
    ({"rates": (0.5,)}, "rates must be a dense floating tensor, but is float"),
    ({"rates": (torch.ones((), dtype=torch.int64),)}, "rates must be a dense floating tensor"),
    ({"pointers": (None,)}, "pointer of records must be an integer, but is None"),
    ({"rule": ReadRule("fast", 1.0, 2.0)}, "mode of the rule must be"),
    ({"rule": ReadRule("alpha", 1.0, 2.0)}, "mode 'alpha' reads two records"),
    (
        {
            "rule": ReadRule("alpha", 1.0, 2.0),
            "rates": (torch.ones(()), None),
            "records": (torch.ones(3, 2, 4),) * 2,
            "pointers": (0, 0),
        },
        "rates must be tensors for the mode 'alpha'",
    ),
    ({"rule": ReadRule("expdecay", 1.0, 2.0, 0.0, float("nan"))}, "overbound of the rule"),
    ({"records": (torch.ones(3, 4, 2).transpose(1, 2),)}, "must be contiguous"),
    ({"pointers": (3,)}, "pointer of records is 3"),
    ({"records": (torch.ones(3, 2, 4),) * 3}, "records must be one or two"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_READS, ids=lambda v: str(v)[:24])
def test_select_refuses(change, message):
    given = {
        "records": (torch.ones(3, 2, 4),), "sel": torch.ones(2, 4), "rates": (torch.ones(()),),
        "pointers": (0,), "rule": ReadRule("expdecay", 1.0, 2.0),
    } | change  # fmt: skip
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        functional.select(**given)
    if not {"pointers", "records"} & change.keys():
        sequence = given["records"]
        with pytest.raises((TypeError, ValueError), match=message):
            functional.select_scan(sequence, given["sel"], given["rates"], given["rule"], 2)


def test_step_wants_a_ring():
    with pytest.raises(TypeError, match="ring must be a Ring, but is None"):
        functional.step(torch.ones(2, 4), None, torch.ones(()), (torch.ones(()),))


def test_select_scan_wants_tensors():
    rule = ReadRule("previous", 1.0, 2.0)
    for sequences in ([[[1.0]]], (None,)):
        with pytest.raises(TypeError, match="sequences must be a dense floating tensor, but is"):
            functional.select_scan(sequences, torch.ones(1, 1), (None,), rule, 1)
    with pytest.raises(TypeError, match="sequences must be one or two tensors, but is None"):
        functional.select_scan(None, torch.ones(1, 1), (None,), rule, 1)


def test_select_scan_refuses_more_steps_than_rows():
    with pytest.raises(ValueError, match="steps must be in 1 to 3"):
        functional.select_scan(
            (torch.ones(3, 2, 4),), torch.ones(2, 4), (None,), ReadRule("previous", 1.0, 2.0), 4
        )


def test_strided_rates_and_records_of_sequences(each_backend, device):
    """Views of larger tensors are read as what they show."""
    wide = uniform(4, 3, 8, seed=3).to(device)
    rates = uniform(8, seed=4, low=0.1, high=0.5).to(device)[::2]
    sel = uniform(1, 4, seed=5).to(device).expand(3, 4)
    rule = ReadRule("expdecay", 1.0, 2.0)
    views, packed = (wide[..., ::2],), (wide[..., ::2].contiguous(),)
    expected = functional.select_scan(packed, sel, (rates.clone(),), rule, 2)
    assert torch.equal(functional.select_scan(views, sel, (rates,), rule, 2), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "x must be a dense real tensor"),
        ({"x": torch.ones(4, 2).to_sparse()}, "x must be a dense real tensor"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"decay": torch.tensor(0.5j)}, "decay must be dense and real"),
        ({"decay": "a"}, "decay must be a number, but is 'a'"),
        ({"gain": float("nan")}, "gain must be finite, but is nan"),
        ({"initial": torch.ones(2, dtype=torch.int64)}, "must be a dense floating tensor"),
        ({"initial": 1.0}, "must be a dense floating tensor, but is float"),
        ({"initial": torch.ones(3)}, "initial state has shape"),
        ({"initial": torch.ones(2).to_sparse()}, "must be a dense floating tensor, but is"),
        ({"decay": torch.ones(2).to_sparse()}, "decay must be dense and real"),
        ({"gain": torch.ones(2, device="meta")}, "gain is on meta"),
    ],
)
def test_exp_scan_refuses(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        functional.exp_scan(**({"x": torch.ones(4, 2), "decay": 0.5} | change))


def test_double_exp_scan_wants_a_pair():
    with pytest.raises(ValueError, match="initial must hold 2 tensors"):
        functional.double_exp_scan(torch.ones(4, 2), 0.5, 0.2, 1.0, (torch.ones(2),))
    with pytest.raises(ValueError, match=r"initial must hold 2 tensors, but is 3.0"):
        functional.double_exp_scan(torch.ones(4, 2), 0.5, 0.2, 1.0, 3.0)


def test_delayed_linear_wants_numbers():
    x, weight = torch.ones(4, 1, 2), torch.ones(3, 2)
    with pytest.raises(TypeError, match="step_time must be a number, but is '1'"):
        functional.delayed_linear(x, weight, weight, decay=0.5, step_time="1", max_delay=2.0)


@pytest.mark.parametrize(
    ("steps", "message"), [(2.5, "steps must be an integer, but is 2.5"), (4, "steps must be in 1")]
)
def test_select_scan_wants_a_number_of_steps(steps, message):
    rows, rule = torch.ones(3, 1, 2), ReadRule("previous", 1.0, 2.0)
    with pytest.raises((TypeError, ValueError), match=message):
        functional.select_scan((rows,), torch.ones(1, 2), (None,), rule, steps)


def test_pack_wants_a_dense_sequence():
    with pytest.raises(
        TypeError, match=r"x must be dense, but is torch\.float32, torch\.sparse_coo"
    ):
        functional.pack_spikes(torch.ones(2, 1, 3).to_sparse())
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), but must have \(T, B"):
        functional.pack_spikes(torch.ones(2, 3))


@pytest.mark.parametrize("synapses", [0, 1, 7, 31, 32, 33, 71])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_packed_spikes_are_bits_of_words(synapses, dtype):
    x = spikes(3, 2, synapses, seed=1).to(dtype) * (3 if dtype != torch.bool else 1)
    packed = functional.pack_spikes(x)
    assert packed.words.dtype == torch.int32
    padded = torch.nn.functional.pad((x != 0).long(), (0, -synapses % 32)).unflatten(-1, (-1, 32))
    words = (padded << torch.arange(32)).sum(-1)
    assert torch.equal(packed.words, torch.where(words < 2**31, words, words - 2**32).int())
    dense = functional.unpack_spikes(packed)
    assert dense.dtype == torch.bool and torch.equal(dense, x != 0) and dense.is_contiguous()


MEMORY = """
import resource, torch
from tritonsyn import functional
x = torch.ones(100, 1000, 999, dtype=torch.bool)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
functional.unpack_spikes(functional.pack_spikes(x[:1], backend="reference"))
start = peak()
packed = functional.pack_spikes(x, backend="reference")
after_packing = peak()
del x  # whose memory is then free for the result
functional.unpack_spikes(packed)
print(after_packing - start, peak() - after_packing)
"""


def test_packing_needs_little_more_memory_than_its_input():
    """In MiB, for an input of 95: as much, and 12 of words; unpacked, twice the result."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    packing, unpacking = map(float, run.stdout.split())
    assert packing < 2 * 95 and unpacking < 2 * 95


def test_unpack_wants_packed_spikes():
    with pytest.raises(TypeError, match="packed must be PackedSpikes"):
        functional.unpack_spikes(torch.ones(2, 1, 3))


WORDS = torch.zeros(4, 2, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("words", "shape", "message"),
    [
        (WORDS, (4, 2, 40), r"words has shape \(4, 2, 1\), but must have \(4, 2, 2\) for spikes"),
        (WORDS, (5, 2, 3), r"words has shape \(4, 2, 1\), but must have \(5, 2, 1\)"),
        (WORDS, (4, 3, 3), r"but must have \(4, 3, 1\)"),
        (WORDS[..., 0], (4, 2, 3), r"words has shape \(4, 2\)"),
        (WORDS.long(), (4, 2, 3), "words must be a dense int32 tensor"),
        (WORDS.to_sparse(), (4, 2, 3), "words must be a dense int32 tensor"),
        (None, (4, 2, 3), "words must be a dense int32 tensor, but is None"),
        (WORDS, (4, 2), r"shape must be \(T, B, \*shape\), but is \(4, 2\)"),
        (WORDS, (4, 2, -3), r"shape must be \(T, B, \*shape\), but is \(4, 2, -3\)"),
        (WORDS, (4, 2, 3.0), "shape must be an integer, but is 3.0"),
        (WORDS, [4, 2, 3], r"shape must be a tuple"),
    ],
)
def test_packed_spikes_that_contradict_themselves(words, shape, message):
    """No kernel reads beyond the words, and no state is half advanced."""
    packed = functional.PackedSpikes(words, shape)
    synapse = make("single", delay=2.0, batch_size=2)
    synapse.scan(torch.ones(2, 2, 3))
    before = snapshot(synapse)
    weight = times = torch.ones(2, 3)
    for use in (
        functional.unpack_spikes,
        lambda x: functional.exp_scan(x, 0.5),
        lambda x: functional.double_exp_scan(x, 0.5, 0.2),
        lambda x: functional.delayed_linear(x, weight, weight, decay=0.5, max_delay=2.0),
        synapse.scan,
        synapse.advance,
        lambda x: synapse.scan_at(x, times),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            use(packed)
    assert same(snapshot(synapse), before)


def test_times_may_be_whole_numbers():
    rule = ReadRule("previous", 1.0, 2.0)
    record = uniform(3, 2, 4, seed=1)
    whole = torch.tensor([[0, 1, 2, 1]] * 2)
    reads = [
        functional.select((record,), t, (None,), (0,), rule)[0] for t in (whole, whole.float())
    ]
    assert torch.equal(*reads)


def operations():
    """Every operation with arguments that it takes."""
    one, weight, rule = torch.ones(()), torch.zeros(2, 3), ReadRule("expdecay", 1.0, 2.0)
    pair = (RECORD.clone(), RECORD.clone())
    ring = Ring(pair, (0, 0), torch.zeros(3, 2, 4, dtype=torch.bool), 0)
    coupled = {"gain": one, "decays": (one,), "coupling": one}
    times = {"sel": VALUE, "rates": (one,), "rule": rule}
    decays = {"decay": 0.5, "rise": 0.2, "gain": 1.0}
    layer = {"weight": weight, "delay": weight, "step_time": 1.0, "max_delay": 2.0}
    return {
        "push": {"record": RECORD.clone(), "value": VALUE, "slot": 0},
        "read": {"record": RECORD, "slot": 0},
        "step": {"x": VALUE, "ring": ring, **coupled},
        "select": {"records": (RECORD,), "pointers": (0,), **times},
        "select_scan": {"sequences": (RECORD,), "steps": 1, **times},
        "pack_spikes": {"x": RECORD},
        "unpack_spikes": {"packed": functional.pack_spikes(RECORD)},
        "exp_scan": {"x": RECORD, "decay": 0.5, "gain": 1.0},
        "double_exp_scan": {"x": RECORD, **decays},
        "alpha_scan": {"x": RECORD, "decay": 0.5, "ratio": 0.7, "gain": 1.0},
        "delayed_linear": {"x": torch.zeros(4, 2, 3), **decays, **layer, "strategy": "auto"},
    }


@pytest.mark.parametrize("name", operations())
@pytest.mark.parametrize(
    "wrong",
    ["x", object(), RECORD.to_sparse(), (None,) * 3],
    ids=["word", "object", "sparse", "nones"],
)
def test_nothing_but_our_own_words_refuses_an_argument(name, wrong):
    arguments = operations()[name]
    function = getattr(functional, name)
    function(**arguments)
    for argument in arguments:
        with pytest.raises(
            (TypeError, ValueError, IndexError), match=argument.rstrip("s")
        ) as refused:
            function(**{**arguments, argument: wrong})
        assert refused.traceback[-1].path.name in ("checks.py", "functional.py")
