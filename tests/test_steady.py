"""Sequences read at one time for each synapse: as with the same times given for each sample."""

import math

import pytest
import torch
from synapses import every_kind, gradcheck, make, uniform

from tritonsyn import Delay, init
from tritonsyn.functional import ReadRule
from tritonsyn.ops import select_scan
from tritonsyn.reference import steady

F64 = torch.float64
STEPS, BATCH, N = 4, 3, 9
MODES = ("previous", "nearest", "next", "linear", "expdecay", "alpha")
# Outside of the bounds, at them, at whole steps, between them, and none at all.
TIMES = (-0.5, 0.0, 0.2, 1.0, 1.5, 1.7, 3.0, 3.4, math.nan)
each_mode = pytest.mark.parametrize("mode", MODES)
each_size = pytest.mark.parametrize("slots", (1, 2, 4))


def operands(mode, slots, dtype=F64):
    count = 2 if mode in ("alpha", "expdecay") else 1
    rows = [uniform(slots - 1 + STEPS, BATCH, N, seed=i, low=-1.0).to(dtype) for i in range(count)]
    rates = [uniform(N, seed=7).to(dtype), torch.tensor(0.3, dtype=dtype)][:count]
    return rows, torch.tensor([TIMES], dtype=dtype), rates


def each_sample(sel):
    """The same times in a form that is read one by one."""
    return sel.expand(BATCH, N)


def read(rows, sel, rates, rule, **how):
    rates = rates if rule.mode in ("alpha", "expdecay") else [None] * len(rows)
    return select_scan(rows, sel, rates, rule, STEPS, backend="reference", **how)


@pytest.fixture
def seen(monkeypatch):
    """How often sequences were read as a whole."""
    calls, body = [], steady.read
    monkeypatch.setattr(steady, "read", lambda *given: calls.append(1) or body(*given))
    return calls


@pytest.mark.parametrize("overbound", (None, 2.0))
@each_size
@each_mode
def test_values(seen, mode, slots, overbound):
    rule = ReadRule(mode, 1.0, slots - 1.0, overbound=overbound)
    rows, sel, rates = operands(mode, slots)
    for dtype in (F64, torch.float32, torch.bfloat16):
        rows = [r.to(dtype) for r in rows]
        rates = [rate.to(F64 if dtype == F64 else torch.float32) for rate in rates]
        expected = read(rows, each_sample(sel), rates, rule)
        assert not seen
        assert torch.equal(read(rows, sel, rates, rule).nan_to_num(), expected.nan_to_num())
        assert seen.pop()


@each_size
@each_mode
def test_gradients(mode, slots):
    rule, found = ReadRule(mode, 1.0, slots - 1.0, overbound=2.0), []
    for form in (lambda sel: sel, each_sample):
        rows, sel, rates = operands(mode, slots)
        leaves = [*rows, sel, *rates] if mode in ("alpha", "expdecay") else [*rows, sel]
        for leaf in leaves:
            leaf.requires_grad_()
        y = read(rows, form(sel), rates, rule)
        y.backward(uniform(*y.shape, seed=3, low=-1.0))
        found.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
        assert mode in ("previous", "nearest", "next") or slots == 1 or actual.any()


@each_mode
def test_what_comes_before(mode):
    """In a tensor of its own, or nothing."""
    slots, rule = 4, ReadRule(mode, 1.0, 3.0)
    rows, _, rates = operands(mode, slots)
    sel = uniform(1, N, seed=8, low=0.1, high=2.9).requires_grad_(mode not in MODES[:3])
    pasts, after = ([r[part] for r in rows] for part in (slice(3), slice(3, None)))

    def divided(*given):
        return read(given[1:3][: len(rows)], given[0], rates, rule, slots=slots, pasts=given[3:])

    given = [sel, *after, *([after[0]] * (len(rows) == 1)), *pasts]
    assert torch.equal(divided(*given), read(rows, sel, rates, rule))
    assert gradcheck(divided, [t.clone().detach().requires_grad_(t is not sel) for t in given])
    resting = [torch.cat((torch.zeros_like(p), a)) for p, a in zip(pasts, after, strict=True)]
    expected = read(resting, sel, rates, rule)
    assert torch.equal(read(after, sel, rates, rule, slots=slots), expected)
    if sel.requires_grad:
        assert gradcheck(lambda t: read(after, t, rates, rule, slots=slots), (sel,))


@each_mode
def test_each_gradient_alone(mode):
    slots, rule = 4, ReadRule(mode, 1.0, 3.0)
    rows, sel, rates = operands(mode, slots)
    rows = [r[part] for part in (slice(3), slice(3, None)) for r in rows]
    leaves, found = [*rows, sel, *rates], {}
    for chosen in (range(len(leaves)), *([i] for i in range(len(leaves)))):
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i in chosen).grad = None
        y = read(
            rows[len(rows) // 2 :], sel, rates, rule, pasts=rows[: len(rows) // 2], slots=slots
        )
        if y.requires_grad:  # rates do not count in all modes
            y[..., :-1].square().sum().backward()
            found[len(chosen) > 1] = [leaves[i].grad for i in chosen]
            if len(chosen) == 1:
                assert torch.equal(found[False][0], found[True][chosen[0]])


def test_only_what_counts_is_seen():
    """A neighbour that does not count may hold anything."""
    rule, rows = ReadRule("linear", 1.0, 3.0), torch.ones(3 + STEPS, 1, 4, dtype=F64)
    rows[1::2, :, 1:3] = math.inf
    y = read([rows], torch.tensor([[0.5, 1.0, 2.0, 1.5]], dtype=F64), [], rule)
    assert y[:, 0, 1].tolist() == y[:, 0, 2].roll(1).tolist() == [1.0, math.inf] * 2
    assert (y[:, 0, ::3] == 1.0).all()


@every_kind
def test_currents_may_be_written(kind):
    """Those returned are not what the read keeps."""
    synapse, found = make(kind, (3,), delay=4.0, batch_size=2, dtype=F64), []
    for factor in (1.0, 2.0):
        synapse.clear()
        times = torch.full((1, 3), 1.5, dtype=F64, requires_grad=True)
        current, delayed = synapse.scan_at(uniform(6, 2, 3), times)
        current.mul_(factor)
        delayed.add_(factor).sum().backward()
        found.append(times.grad)
    assert found[0].all() and torch.equal(*found)


@pytest.mark.parametrize("interp", ("linear", "gaussian"))
def test_signals_may_be_written(interp):
    """Before the backward pass, as buffers are that the next sequence takes; or be of inference."""
    signals, grads = [], []
    for kind in ("kept", "written", "of inference"):
        with torch.inference_mode(kind == "of inference"):
            x = uniform(6, 2, 3).float()
        layer = Delay(3, 1.0, delay=4.0, interp=interp, delay_init=init.constant(1.4))
        y = layer.scan(x)
        if kind == "written":
            x.zero_()
        y.square().sum().backward()
        signals.append(y)
        grads.append(layer.delay.grad)
    for first, *others in (signals, grads):
        assert first.any() and all(torch.equal(first, other) for other in others)


def test_values_that_no_step_reads():
    """They may be anything, in gradients too."""
    x = uniform(8, 1, 2).float()
    x[-1, 0, 0] = math.inf  # at a delay of 2.5 steps the last one is not read
    layer = Delay(2, 1.0, delay=4.0, delay_init=init.constant(2.5))
    layer.scan(x).sum().backward()
    assert layer.delay.grad.isfinite().all() and layer.delay.grad.all()
    layer.scan(torch.full_like(x, math.nan)[:2])
    layer.detach_state()
    layer.delay.grad = None
    layer.scan(x.nan_to_num(posinf=0.0))[4:].sum().backward()
    assert layer.delay.grad.isfinite().all()
    rate = torch.tensor(0.3, dtype=F64, requires_grad=True)
    rows = uniform(6, 1, 2)
    rows[:, 0, 1] = math.inf  # which the overbound value replaces
    rule = ReadRule("expdecay", 1.0, 2.0, overbound=0.0)
    read([rows], torch.tensor([[1.5, 9.0]], dtype=F64), [rate], rule).sum().backward()
    assert rate.grad.isfinite() and rate.grad


def test_sums_over_long_sequences():
    """The gradient of a Gaussian's delays is exact however many values it adds up."""
    x, grads = uniform(1500, 64, 2) < 0.1, []
    for dtype in (F64, torch.float32):
        how = {"interp": "gaussian", "sigma": 2.0, "dtype": dtype, "batch_size": 64}
        delays = torch.tensor([4.6, 11.3], dtype=dtype)
        layer = Delay(2, 1.0, delay=20.0, delay_init=lambda _, d=delays: d, **how)
        (layer.scan(x).double() - 0.3).square().mean().backward()
        grads.append(layer.delay.grad.double())
    exact, single = grads
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", (F64, torch.float32))
@pytest.mark.parametrize("shape, delay_shape", ((1, None), (3, None), (3, 1)))
@pytest.mark.parametrize("steps", (1, 5))
def test_delayed_signals_may_be_written(dtype, shape, delay_shape, steps):
    how = {"interp": "gaussian", "delay_shape": delay_shape, "dtype": dtype}
    layer = Delay(shape, 1.0, delay=4.0, batch_size=1, **how)
    y = layer.scan(uniform(steps, 1, shape).to(dtype))
    expected = y.detach().mul(2.0)
    assert torch.equal(y.mul_(2.0), expected)
    y.sum().backward()
    assert layer.delay.grad.any()
