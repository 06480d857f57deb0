"""Currents against their closed forms; the time of a spike is the end of its step.

In float64; the bounds allow one rounding for each of the steps taken.
"""

import math

import pytest
import torch
from synapses import PHYSICS, every_kind, make, uniform

F64 = torch.float64
ROUNDING = 1e-14  # relative, about fifty units in the last place


def response(kind, t, charge=10.0):
    """Current a time ``t >= 0`` after one unit spike, before it none."""
    t = torch.as_tensor(t, dtype=F64)
    _, tau, *rise = PHYSICS[kind].values()
    current = torch.exp(-t / tau)
    if kind == "double":
        current = (current - torch.exp(-t / rise[0])) / (tau - rise[0])
    else:
        current = current / tau if kind == "single" else current * t / tau**2
    current = charge * current
    return torch.where(t >= 0, current, 0.0)


def run(synapse, x):
    """Currents of every step: ``[T, B, *shape]``."""
    return torch.stack([synapse(x_t) for x_t in x])


def impulse(steps, device, at=0, value=1.0):
    """Input ``[T, 1, 1]`` that is zero but for one step."""
    x = torch.zeros(steps, 1, 1, dtype=F64, device=device)
    x[at] = value
    return x


def close(actual, expected, rtol=ROUNDING, atol=ROUNDING):
    torch.testing.assert_close(actual.cpu(), torch.as_tensor(expected), rtol=rtol, atol=atol)


@every_kind
@pytest.mark.parametrize("step_time", [0.1, 1.0, 2.5])
def test_one_spike_at_the_steps(kind, step_time, each_backend, device):
    synapse = make(kind, 1, step_time, dtype=F64, device=device)
    y = run(synapse, impulse(12, device, at=2)).flatten()
    close(y, response(kind, (torch.arange(12, dtype=F64) - 2) * step_time))


@every_kind
@pytest.mark.parametrize("step_time", [0.1, 1.0, 2.5])
def test_one_spike_between_the_steps(kind, step_time, each_backend, device):
    """A read at any time is the continuous exponential, and nothing before the spike."""
    synapse = make(kind, 1, step_time, delay=8 * step_time, dtype=F64, device=device)
    run(synapse, impulse(8, device, at=2))
    ago = torch.linspace(0.0, 7.99, 65, dtype=F64) * step_time
    y = synapse.current_at(ago.view(1, 1, -1).to(device)).flatten()
    since = (7 - 2) * step_time - ago
    since[(since / step_time).abs() < 1e-9] = 0.0  # at the spike itself
    close(y, response(kind, since))
    assert (y[since < 0] == 0).all() and (since < 0).sum() > 10


def test_components_of_the_double_synapse(each_backend, device):
    """Each decays with its own time constant; together they are the current."""
    synapse = make("double", 1, 0.5, delay=5.0, dtype=F64, device=device)
    x = impulse(6, device)
    for t, x_t in enumerate(x):
        y = synapse(x_t)
        close(synapse.pos_current, 2.5 * math.exp(-0.5 * t / 6.0) * torch.ones(1, 1, dtype=F64))
        close(synapse.neg_current, 2.5 * math.exp(-0.5 * t / 2.0) * torch.ones(1, 1, dtype=F64))
        assert torch.equal(synapse.current, y)
    sel = torch.tensor([[[0.0, 0.3, 1.1, 2.5]]], dtype=F64, device=device)
    pos, neg = synapse.pos_current_at(sel), synapse.neg_current_at(sel)
    close(pos, 2.5 * torch.exp(-(2.5 - sel.cpu()) / 6.0))
    close(neg, 2.5 * torch.exp(-(2.5 - sel.cpu()) / 2.0))
    close(synapse.current_at(sel), (pos - neg).cpu())


@every_kind
@pytest.mark.parametrize("step_time", [1.0, 2.5])
def test_charge_that_arrives(kind, step_time, device):
    r"""The sum of ``I * dt`` is a geometric series, of which Q is the limit for small steps.

    With :math:`S(\tau) = dt / (1 - e^{-dt/\tau}) = \tau + dt/2 + dt^2/12\tau + ...` it is
    :math:`Q S(\tau) / \tau` for the single synapse and
    :math:`Q (S(\tau_d) - S(\tau_r)) / (\tau_d - \tau_r)` for the double one, of which the alpha
    function's :math:`Q S'(\tau)` is the limit.
    """

    def series(tau):
        return -step_time / math.expm1(-step_time / tau)

    synapse = make(kind, 1, step_time, dtype=F64, device=device, inplace=True)
    arrived = run(synapse, impulse(200, device)).sum().item() * step_time  # rest: 1e-14 of it
    if kind == "single":
        exact = 10.0 * series(5.0) / 5.0
        relative = 1 + step_time / 10 + step_time**2 / 300
    elif kind == "alpha":
        exact = 10.0 * (step_time / 3.0 / 2 / math.sinh(step_time / 3.0 / 2)) ** 2
        relative = 1 - step_time**2 / 108
    else:
        exact = 10.0 * (series(6.0) - series(2.0)) / (6.0 - 2.0)
        relative = 1 - step_time**2 / 144
    assert arrived == pytest.approx(exact, rel=1e-12)
    assert arrived / 10.0 == pytest.approx(relative, abs=1e-4 * step_time**4)


@every_kind
def test_charge_between_the_steps_is_exact(kind, device):
    """The interpolated current integrates to Q: Simpson's rule on the reads."""
    synapse = make(kind, 1, 1.0, delay=150.0, dtype=F64, device=device)
    run(synapse, impulse(151, device))
    panels = 3000
    weights = torch.ones(panels + 1, dtype=F64)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    ago = torch.linspace(0.0, 150.0, panels + 1, dtype=F64).view(1, 1, -1)
    y = synapse.current_at(ago.to(device)).flatten().cpu()
    integral = (y * weights).sum().item() * 150.0 / panels / 3.0
    # Simpson's error is h**4 / 180 of the third derivative's change, here 3e-8; the tail 2e-11.
    assert integral == pytest.approx(10.0, rel=1e-7)


def test_peak_of_the_double_synapse(each_backend, device):
    """Where the closed form says: the slope is zero there, and every other read is lower."""
    decay, rise = PHYSICS["double"]["tc_decay"], PHYSICS["double"]["tc_rise"]
    peak = decay * rise / (decay - rise) * math.log(decay / rise)
    synapse = make("double", 1, 1.0, delay=10.0, dtype=F64, device=device)
    run(synapse, impulse(11, device))
    ago = torch.full((1, 1), 10.0 - peak, dtype=F64, device=device, requires_grad=True)
    highest = synapse.current_at(ago)
    close(highest.detach(), response("double", peak).view(1, 1))
    (slope,) = torch.autograd.grad(highest.sum(), ago)
    assert abs(slope.item()) < 1e-14
    others = torch.linspace(0.0, 10.0, 101, dtype=F64, device=device).view(1, 1, -1)
    assert (synapse.current_at(others) <= highest.detach().unsqueeze(-1)).all()


@every_kind
def test_any_input_is_the_sum_of_its_spikes(kind, each_backend, device):
    """A convolution with the response, for graded input of both signs."""
    x = uniform(10, 2, 3, seed=1, low=-1.0)
    synapse = make(kind, 3, 0.7, batch_size=2, dtype=F64, device=device)
    y = run(synapse, x.to(device)).cpu()
    ends = torch.arange(10, dtype=F64) * 0.7
    since = ends.unsqueeze(1) - ends
    kernel = response(kind, since)  # [t, s]: what the input of step s is at step t
    close(y, torch.einsum("ts,sbn->tbn", kernel, x), rtol=0, atol=1e-13)


@every_kind
def test_linear_in_the_input(kind, each_backend, device):
    a, b = uniform(6, 1, 4, seed=1).to(device), uniform(6, 1, 4, seed=2, low=-1.0).to(device)
    y_a, y_b, y = (
        run(make(kind, 4, dtype=F64, device=device), x) for x in (a, b, 2.0 * a - 0.5 * b)
    )
    close(y, (2.0 * y_a - 0.5 * y_b).cpu(), rtol=0, atol=1e-13)


@every_kind
@pytest.mark.parametrize("charge", [-10.0, 0.5])
def test_linear_in_the_charge(kind, charge, each_backend, device):
    """Negative charge, an inhibitory synapse, mirrors the current."""
    y = run(make(kind, 1, spike_charge=charge, dtype=F64, device=device), impulse(5, device))
    close(y.flatten(), response(kind, torch.arange(5), charge))


@every_kind
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.bfloat16]
)  # fmt: skip
def test_dtype_of_the_input_does_not_matter(kind, dtype, each_backend, device):
    """Bool is 0 and 1; integers and small floats hold these numbers exactly."""
    x = torch.tensor([[1, 0, 1], [0, 0, 1]], device=device)
    x = x if dtype == torch.bool else x * torch.tensor([1, 1, 3], device=device)
    floating, other = (make(kind, 3, dtype=F64, device=device) for _ in range(2))
    for x_t in x.unsqueeze(1):
        y, expected = other(x_t.to(dtype)), floating(x_t.to(dtype).to(F64))
        assert torch.equal(y, expected) and y.dtype == F64
        assert torch.equal(other.spike, x_t != 0)


@every_kind
def test_graded_input_spikes_where_it_is_not_zero(kind, each_backend, device):
    """The value multiplies the gain; however small or negative, it is a spike."""
    x = torch.tensor([[0.5, -2.0, 1e-30, 0.0, -0.0]], dtype=F64, device=device)
    synapse = make(kind, 5, delay=1.0, dtype=F64, device=device)
    y = synapse(x)
    assert torch.equal(synapse.spike, torch.tensor([[True, True, True, False, False]]).to(device))
    close(y, x.cpu() * 2.0 if kind == "single" else torch.zeros(1, 5, dtype=F64))
    synapse(torch.zeros_like(x))
    assert torch.equal(synapse.spike_at(torch.ones_like(x)), x != 0)
    close(synapse.current, x.cpu() * response(kind, 1.0))


@every_kind
def test_finer_steps_give_the_same_current_at_the_same_times(kind, device):
    """One spike is one charge, whatever the step; the steps only sample its exponential."""
    coarse = run(make(kind, 1, 1.0, dtype=F64, device=device), impulse(6, device))
    fine = run(make(kind, 1, 0.25, dtype=F64, device=device), impulse(24, device))
    close(fine[::4], coarse.cpu())


@every_kind
def test_rest_stays_at_rest(kind, each_backend, device):
    synapse = make(kind, 3, delay=3.0, batch_size=2, device=device)
    for _ in range(5):
        assert not synapse(torch.zeros(2, 3, device=device)).any()
    assert not synapse.current_at(torch.rand(2, 3, 4, device=device) * 3).any()
    assert not synapse.spike.any()
