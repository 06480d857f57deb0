"""What helps delays and constants to learn: parametrizations, initial values, penalties."""

import copy
import io
import math

import pytest
import torch
from synapses import CLASSES, PHYSICS, every_kind, interpreted, make
from torch.nn.utils import parametrize

from tritonsyn import Delay, DelayedLinear, init, regularizers
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
    assert fill(layer.delay) is layer.delay  # begun again


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


# -- the spread --------------------------------------------------------------------------------


def smoothed(layer, x, dy, width):
    """The gradient of delays by autograd: currents shifted by a small time, linear between their
    observations and constant at the ends, and averaged by a Gaussian."""
    twin, slots = copy.deepcopy(layer), layer.synapse.spike_.recordsz
    twin.clear()
    rest = x.new_zeros(slots - 1, *x.shape[1:])
    currents = twin.synapse.scan(torch.cat((rest, x))).detach()[-len(dy) - slots + 1 :]
    weight, delay = layer.weight.detach(), layer._delays_of_taps(layer.delay).detach()
    delay = delay.expand(weight.shape).clone()
    back = (delay.clamp(0, layer.max_delay) / layer.dt - 1e-9).ceil().long().clamp(min=1)
    shift = torch.zeros_like(delay, requires_grad=True)
    reach = math.ceil(4 * width / layer.dt)
    offsets = torch.arange(-reach, reach + 1)
    gaussian = (-0.5 * (offsets.to(F64) * layer.dt / width) ** 2).exp()
    gaussian /= gaussian.sum()
    steps = torch.arange(slots - 1, len(currents)).view(-1, 1, 1, 1)
    rows = steps - back.unsqueeze(-1) + offsets
    inputs = torch.arange(weight.shape[1]).view(1, 1, -1, 1)
    first, second = (
        currents.movedim(1, -1)[(rows + i).clamp(0, len(currents) - 1), inputs] for i in (0, 1)
    )
    read = first - (second - first) * (shift / layer.dt).view(*shift.shape, 1, 1)
    y = torch.einsum("oi,toijb,j->tbo", weight, read, gaussian)
    (found,) = torch.autograd.grad(y, shift, dy)
    within = (delay >= 0) & (delay <= layer.max_delay)
    return torch.where(within, found, 0.0).sum_to_size(layer._delays_of_taps(layer.delay).shape)


@every_kind
@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_a_spread_is_the_slope_of_smoothed_currents(device, each_backend, kind, delays):
    """By every strategy, and on a tape; values and all other gradients are the exact ones."""
    if interpreted() and (kind, delays) != ("single", "connection"):
        pytest.skip("the kernels see the same")
    torch.manual_seed(0)
    options = {"delay_init": init.uniform(-1.0, 13.0), "dtype": F64, "device": device}
    if (kind, delays) == ("alpha", "connection"):
        options["mask"] = torch.rand(3, 4) < 0.7
    layer = layer_of(kind, delays=delays, batch_size=2, **options)
    with torch.no_grad():
        layer.delay.view(-1)[:3] = torch.tensor([0.0, 3.0, LONGEST], dtype=F64)
    steps = 3 if interpreted() else 9
    x = (torch.rand(steps, 2, 4) < 0.4).to(device)
    dy = torch.randn(steps, 2, 3, dtype=F64).to(device)
    exact = layer.scan(x)
    width = {"connection": 3.0, "input": 8.0, "output": 0.4}[delays]
    wanted = gradients(layer, exact, dy) | {"delay": smoothed(layer, x, dy, width)}
    layer.spread = width
    for strategy in ("shift",) if interpreted() else ("shift", "gemm", "bits", "events", "auto"):
        layer.clear()
        layer.strategy = strategy
        y = layer.scan(x)
        torch.testing.assert_close([y, gradients(layer, y, dy)], [exact, wanted], **EXACTLY)
    layer.clear()
    with layer.unrolled(12):
        y = torch.stack([layer(row) for row in x])
    torch.testing.assert_close([y, gradients(layer, y, dy)], [exact, wanted], **EXACTLY)
    layer.detach_state()
    found = gradients(layer, layer.scan(x), dy)["delay"]  # what came before is seen too
    wanted = smoothed(layer, torch.cat((x, x)), dy, width)
    torch.testing.assert_close(found, wanted, **EXACTLY)


EXACTLY = {"rtol": 0, "atol": 1e-12}


def gradients(layer, y, dy):
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(y, parameters, dy), strict=True))
    return found | {"delay": layer._delays_of_taps(found["delay"])}


def test_a_spread_in_blocks_of_steps_is_that_in_single_steps():
    """But at the end, where blocks know outputs of which the inputs are still to come."""
    torch.manual_seed(0)
    layer = layer_of("double", dtype=F64, min_delay=2.0, spread=0.2)
    x, dy = torch.rand(9, 1, 4) < 0.4, torch.zeros(9, 1, 3, dtype=F64)
    dy[:5] = 1.0
    with layer.unrolled(9):
        steps = torch.stack([layer(row) for row in x])
    layer.clear()
    with layer.unrolled(9):
        rows = torch.cat((torch.zeros(2, 1, 4, dtype=torch.bool), x))[:9]
        blocks = torch.cat([layer.ahead(three) for three in rows.split(3)])
    torch.testing.assert_close(blocks, steps, **EXACTLY)
    found, wanted = (gradients(layer, y, dy) for y in (blocks, steps))
    torch.testing.assert_close(found, wanted, **EXACTLY)


def test_a_single_step_has_no_spread():
    layer = layer_of(spread=2.0, delay_init=init.constant(3.0))
    before = layer.state_dict()["synapse.current_.pointer"].clone()
    with pytest.raises(RuntimeError, match=r"spread=2.0 looks at the steps around a delay"):
        layer(torch.ones(1, 4))
    assert torch.equal(layer.state_dict()["synapse.current_.pointer"], before)
    with torch.no_grad():
        assert not layer(torch.ones(1, 4)).any()
    layer.delay.requires_grad_(False)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


def recovered(module, teacher, x_of, width_of, updates=100):
    """Learns the delays of a module from what a teacher makes of random spikes."""
    optimizer = torch.optim.Adam([module.delay], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for i in range(updates):
        width_of(module, 0.25 ** (i / updates))
        x = x_of()
        teacher.clear()
        module.clear()
        with torch.no_grad():
            wanted = teacher.scan(x)
        loss = (module.scan(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.clamp_delays_()
    return (module.delay - teacher.delay).detach().abs().max().item()


KNOWN = torch.tensor([[1.5, 11.25, 6.0], [10.75, 0.5, 3.0]])
START = torch.tensor([[11.0, 1.0, 0.0], [2.0, 12.0, 11.5]])


@every_kind
def test_delays_are_found_from_far_away(kind):
    """From 11 steps away. Within a step the current of a single synapse tells little."""
    torch.manual_seed(0)
    shape = {"inputs": 3, "outputs": 2, "batch_size": 8, "weight_init": torch.nn.init.ones_}
    teacher = layer_of(kind, delay_init=lambda t: KNOWN, **shape)
    student = layer_of(kind, delay_init=lambda t: START, **shape)

    def widen(layer, part):
        layer.spread = 8.0 * part if part > 0.35 else 0.0

    distance = recovered(student, teacher, lambda: torch.rand(40, 8, 3) < 0.08, widen)
    assert distance < (1.0 if kind == "single" else 0.2)


@pytest.mark.parametrize("interp", ["gaussian", "linear"])
def test_delays_of_signals_are_found_from_far_away(interp):
    """Of spikes by a Gaussian that shrinks to a line, of a slow signal by the line alone."""
    torch.manual_seed(0)
    how = {"delay": LONGEST, "batch_size": 8}
    teacher = Delay(6, 1.0, delay_init=lambda t: KNOWN.round().flatten(), interp="linear", **how)
    student = Delay(6, 1.0, delay_init=lambda t: START.flatten(), interp=interp, **how)

    def widen(delay, part):
        delay.sigma = 8.0 * part
        delay.interp = interp if part > 0.35 else "linear"

    def slow():
        phase = 2 * math.pi * torch.rand(8, 6)
        return (torch.arange(40.0).view(-1, 1, 1) / 5 + phase).sin()

    x_of = slow if interp == "linear" else lambda: torch.rand(40, 8, 6) < 0.08
    assert recovered(student, teacher, x_of, widen, updates=200) < 0.2


def test_a_spread_ends_with_each_sample():
    """Whatever is given after the end, each sample is as if it had run alone."""
    torch.manual_seed(0)
    layer = layer_of(dtype=F64, spread=2.0)
    x, dy = torch.rand(2, 9, 3, 4) < 0.4, torch.randn(9, 3, 3, dtype=F64)

    def found(sample, steps, lengths=None):
        layer.clear()
        with torch.no_grad():
            layer.scan(x[0, :, sample])
        y = layer.scan(x[1, :steps, sample], lengths)
        return gradients(layer, y, dy[:steps, sample])["delay"]

    alone = found(slice(0, 1), 9) + found(slice(1, 2), 5)
    torch.testing.assert_close(found(slice(3), 9, [9, 5, 0]), alone, **EXACTLY)


@pytest.mark.slow
def test_a_compiled_sequence_has_the_same_spread():
    torch.manual_seed(0)
    layer = layer_of("double", batch_size=2, spread=2.0, capturable=True)
    x, dy = torch.rand(9, 2, 4) < 0.4, torch.randn(9, 2, 3)
    wanted = gradients(layer, layer.scan(x), dy)
    layer.clear()
    compiled = torch.compile(layer.scan, fullgraph=True)
    torch.testing.assert_close(gradients(layer, compiled(x), dy), wanted)
