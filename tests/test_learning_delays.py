"""What helps delays and constants to learn: parametrizations, initial values, penalties."""

import copy
import io
import math

import pytest
import torch
from synapses import CLASSES, PHYSICS, every_kind, make
from torch.nn.utils import parametrize

from tritonsyn import DelayedLinear, init, regularizers
from tritonsyn.parametrizations import Bounded, Positive, WholeSteps

F64 = torch.float64
LONGEST = 12.0


def layer_of(kind="single", inputs=4, outputs=3, **options):
    physics = {"single": (5.0, 5.0), "double": (5.0, 6.0, 3.0), "alpha": (5.0, 3.0)}[kind]
    synapse = CLASSES[kind].partialconstructor(*physics)
    settings = {"synapse": synapse, "delay": LONGEST, **options}
    return DelayedLinear(inputs, outputs, 1.0, **settings)


MADE = {
    "bounded": (lambda: Bounded(1.0, LONGEST), [1.5, 6.0, 11.75]),
    "whole steps": (lambda: WholeSteps(0.5), [0.5, 3.0, 12.0]),
    "positive": (lambda: Positive(), [1e-3, 1.0, 40.0]),
    "above a bound": (lambda: Positive(2.0), [2.001, 3.0, 40.0]),
}
each = pytest.mark.parametrize(("make_one", "values"), MADE.values(), ids=list(MADE))


@each
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_parametrization_gives_back_what_was_assigned(make_one, values, dtype):
    made, values = make_one(), torch.tensor(values, dtype=dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(made(made.right_inverse(values)), values, rtol=tolerance, atol=0)
    if not isinstance(made, WholeSteps):
        raw = torch.tensor([-1.0, 0.3, 2.0], dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(made, raw)


@each
def test_a_parametrized_layer_is_a_layer_like_any_other(make_one, values):
    """Saved, copied, trained, clamped and rounded; the parameter is where torch puts it."""
    layer = layer_of(delay_init=init.uniform(2.1, 11.9), dtype=F64, batch_size=2)
    parametrize.register_parametrization(layer, "delay", make_one())
    raw = layer.parametrizations.delay.original
    twin, buffer = copy.deepcopy(layer), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    with torch.no_grad():
        twin.parametrizations.delay.original.zero_()
    twin.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    torch.testing.assert_close(twin.delay, layer.delay, rtol=0, atol=0)
    layer.scan(torch.rand(30, 2, 4) < 0.5).square().sum().backward()
    assert raw.grad.count_nonzero() == 12
    before = raw.detach().clone()
    layer.clamp_delays_()
    assert torch.equal(raw, before)  # delays within bounds keep what they are made of
    layer.round_delays_()
    torch.testing.assert_close(layer.delay, layer.delay.round(), rtol=1e-14, atol=1e-14)


def test_delays_at_the_bounds_of_a_sigmoid_read_the_steps_there():
    layer = layer_of(delay_init=init.uniform(1.0, 11.0))
    parametrize.register_parametrization(layer, "delay", Bounded(0.0, LONGEST))
    with torch.no_grad():
        layer.delay = torch.tensor([[0.0], [LONGEST], [-1.0]]).expand(3, 4)
    assert layer.delay_steps.tolist() == [[0] * 4, [12] * 4, [0] * 4]
    assert layer.parametrizations.delay.original.isfinite().all()


def test_rounded_delays_learn_by_less_than_a_step():
    """Clamping after every step of the optimiser keeps the fractions."""
    layer = layer_of("double", delay_init=init.constant(4.0))
    parametrize.register_parametrization(layer, "delay", WholeSteps(1.0))
    layer.parametrizations.delay.original.grad = torch.full((3, 4), -0.3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    found = []
    for _ in range(5):
        optimizer.step()
        layer.clamp_delays_()
        found.append(layer.delay[0, 0].item())
    assert found == [4.0, 5.0, 5.0, 5.0, 6.0]
    for _ in range(100):
        optimizer.step()
        layer.clamp_delays_()
    assert layer.parametrizations.delay.original.max() == LONGEST


@every_kind
def test_constants_that_stay_positive_learn_and_can_be_assigned(kind):
    constants = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=F64))
        for name, value in PHYSICS[kind].items()
    }
    synapse = make(kind, **constants, dtype=F64)
    for name in constants:
        parametrize.register_parametrization(synapse, name, Positive())
    optimizer = torch.optim.Adam(synapse.parameters(), lr=3.0)  # by a factor of 20
    synapse.scan(torch.ones(6, 1, 3)).sum().backward()
    optimizer.step()
    for name, before in PHYSICS[kind].items():
        ratio = getattr(synapse, name).item() / before
        assert ratio == pytest.approx(math.exp(3)) or ratio == pytest.approx(math.exp(-3)), name
    name = next(iter(constants))
    setattr(synapse, name, torch.tensor(7.0, dtype=F64))
    assert getattr(synapse, name).item() == pytest.approx(7.0)
    with pytest.raises(ValueError, match="value must be greater than"):
        setattr(synapse, name, torch.tensor(-1.0, dtype=F64))


MEANS = {
    "constant": (init.constant(3.0), 3.0, 3.0, 3.0),
    "uniform": (init.uniform(2.0, 6.0), 2.0, 6.0, 4.0),
    "normal": (init.normal(5.0, 2.0), 0.0, 20.0, 5.0),
    "half-normal": (init.normal(0.0, 2.0, high=3.0), 0.0, 3.0, 0.75),
    "log-uniform": (init.log_uniform(1.0, 8.0), 1.0, 8.0, 7 / math.log(8)),
}


@pytest.mark.parametrize(("fill", "low", "high", "mean"), MEANS.values(), ids=list(MEANS))
def test_initial_delays_are_where_they_are_said_to_be(fill, low, high, mean):
    torch.manual_seed(0)
    layer = layer_of(inputs=100, outputs=100, delay=20.0, delay_init=fill)
    assert low <= layer.delay.min() and layer.delay.max() <= high
    assert layer.delay.mean().item() == pytest.approx(mean, rel=0.03)


def test_penalties_pull_where_they_are_said_to():
    delay = torch.tensor([[0.25, 2.0], [3.5, 7.75]], dtype=F64, requires_grad=True)
    wanted = {
        "l1": (3.375, [[1, 1], [1, 1]]),
        "l2": (19.09375, [[1, 1], [1, 1]]),
        "variance": (7.703125, [[-1, -1], [1, 1]]),
    }
    for name, (value, signs) in wanted.items():
        penalty = getattr(regularizers, name)(delay)
        (slope,) = torch.autograd.grad(penalty, delay)
        assert penalty.item() == pytest.approx(value), name
        assert slope.sign().tolist() == signs, name
    steps = regularizers.whole_steps(delay, 1.0)
    assert steps.item() == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    (slope,) = torch.autograd.grad(steps, delay)
    assert slope[0, 0] > 0 > slope[1, 1] and abs(slope[0, 1]) < 1e-12  # down to 0, up to 8
