"""The module ``Delay``: closed forms, other libraries' formulas, steps and sequences, gradients."""

import copy

import pytest
import torch
from synapses import gradcheck, same, snapshot, spikes, uniform
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from tritonsyn import Delay
from tritonsyn.functional import pack_spikes

INTERPOLATIONS = ("previous", "nearest", "linear", "gaussian")
every_interp = pytest.mark.parametrize("interp", INTERPOLATIONS)
DELAYS = torch.tensor([0.0, 0.3, 1.5, 2.0, 3.7])


def a_delay(interp="linear", step_time=1.0, **options):
    """Five channels with :data:`DELAYS`, in steps, and up to four steps."""
    options = {"dtype": torch.float64, "delay_init": lambda _: DELAYS * step_time, **options}
    return Delay(5, step_time, delay=4.0 * step_time, interp=interp, **options)


def stepped(layer, x):
    return torch.stack([layer(row) for row in x])


def weights_of(delay, kind, slots, sigma=1.0):
    """How much each whole lag counts in snnTorch's and norse's delays, ``[N, K]``; in steps.

    By the formulas in the descriptions of snnTorch's pull request 453 and norse's 454.
    """
    away = torch.arange(slots, dtype=delay.dtype) - delay.unsqueeze(-1)
    heights = {
        "linear": torch.relu(1 - away.abs()),
        "gaussian": torch.exp(-away.square() / (2 * sigma**2)),
    }[kind]
    return heights / heights.sum(-1, keepdim=True)


def by_lags(x, weights):
    """``sum over the lags of weights[:, lag] * x[t - lag]``."""
    lags = [
        torch.cat([torch.zeros_like(x[:lag]), x[: len(x) - lag]]) * weights[:, lag]
        for lag in range(weights.shape[1])
    ]
    return torch.stack(lags).sum(0)


# -- values ---------------------------------------------------------------------------------------


@every_interp
def test_whole_steps_shift_the_signal(interp, each_backend, device):
    """Of 0.1 ms, which no binary number is."""
    step_time = 0.1
    whole = torch.arange(5, dtype=torch.float64) * step_time
    layer = a_delay(interp, step_time, delay_init=lambda _: whole, sigma=0.01 * step_time)
    x = uniform(9, 2, 5).to(device)
    y = layer.to(device)(x)
    expected = torch.zeros_like(x)
    for channel in range(5):
        expected[channel:, :, channel] = x[: 9 - channel, :, channel]
    assert_close(y, expected, rtol=0, atol=0 if interp != "gaussian" else 1e-12)


@pytest.mark.parametrize(
    ("interp", "expected"),
    [
        ("previous", [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0],
                      [0, 0, 0, 0, 1]]),
        ("nearest", [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0],
                     [0, 0, 0, 0, 1]]),
        ("linear", [[1, 0, 0, 0, 0], [0.7, 0.3, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 1, 0, 0],
                    [0, 0, 0, 0.3, 0.7]]),
    ],
)  # fmt: skip
def test_what_becomes_of_a_spike(interp, expected):
    x = torch.zeros(5, 1, 5, dtype=torch.bool)
    x[0] = True
    y = a_delay(interp)(x)
    assert y.dtype == torch.float64
    assert_close(y[:, 0].T, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize("shared", [False, True])
def test_it_equals_the_delays_of_snntorch_and_norse(kind, shared, device):
    """Values and gradients, in steps of 2 ms; a delay of all by a parameter of one element."""
    d = torch.tensor([1.3] if shared else [0.2, 0.9, 1.5, 2.4, 3.7], dtype=torch.float64)
    layer = a_delay(kind, 2.0, sigma=2.6, delay_init=lambda _: 2.0 * d, delay_shape=d.shape).to(
        device
    )
    x = uniform(8, 2, 5).to(device).requires_grad_()
    steps = d.to(device).requires_grad_()
    expected = by_lags(x, weights_of(steps, kind, 5, sigma=1.3).expand(5, 5))
    weight = uniform(8, 2, 5, seed=1).to(device)
    wanted = torch.autograd.grad((expected * weight).sum(), (x, steps))
    for run in (layer, lambda x: stepped(layer, x)):
        layer.clear()
        y = run(x)
        assert_close(y, expected)
        dx, ddelay = torch.autograd.grad((y * weight).sum(), (x, layer.delay))
        assert_close((dx, 2.0 * ddelay), wanted)


@pytest.mark.parametrize("delay_shape", [None, 1])
def test_a_gaussian_that_is_narrow_against_the_delays_is_the_same(delay_shape, device):
    """Only what is near is computed with: 9 of 61 values."""
    d = torch.tensor([0.2, 17.5, 59.6], dtype=torch.float64)[: delay_shape or 3]
    layer = Delay(
        3, 0.1, delay=6.0, interp="gaussian", sigma=0.04, delay_shape=delay_shape,
        delay_init=lambda _: 0.1 * d, dtype=torch.float64,
    ).to(device)  # fmt: skip
    x, steps = uniform(66, 1, 3).to(device).requires_grad_(), d.to(device).requires_grad_()
    expected = by_lags(x, weights_of(steps, "gaussian", 61, sigma=0.4).expand(3, 61))
    wanted = torch.autograd.grad(expected.square().sum(), (x, steps))
    for run in (layer, lambda x: stepped(layer, x)):
        layer.clear()
        y = run(x)
        assert_close(y, expected)
        dx, ddelay = torch.autograd.grad(y.square().sum(), (x, layer.delay))
        assert_close((dx, 0.1 * ddelay), wanted)


def test_a_gaussian_without_width_is_the_closer_value():
    x = uniform(8, 2, 5)
    none, hardly, narrow, nearest = (
        a_delay(**kind)(x)
        for kind in ({"interp": "gaussian", "sigma": 0.0}, {"interp": "gaussian", "sigma": 1e-200},
                     {"interp": "gaussian", "sigma": 1e-3}, {"interp": "nearest"})
    )  # fmt: skip
    assert torch.equal(none, nearest) and torch.equal(hardly, nearest)
    unequal = DELAYS != 1.5  # in the middle both count
    assert_close(narrow[..., unequal], nearest[..., unequal])


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "interp", "delay_shape"),
    [
        *(("reference", interp, shape) for interp in ("linear", "gaussian") for shape in (None, 1)),
        ("triton", "linear", None),
        ("triton", "gaussian", None),
    ],
)
def test_gradients(interp, delay_shape, each_backend, device):
    """Of a sequence, of steps, and of what came before them."""
    size = 3 if delay_shape is None else 1

    def run(first, rest, delay):
        layer = Delay(
            3, 1.0, delay=3.0, interp=interp, delay_shape=delay_shape, dtype=torch.float64,
            min_delay=0.25,
        ).to(device)  # fmt: skip
        parameters = {"delay": delay}
        return torch.cat([torch.func.functional_call(layer, parameters, (x,))
                          for x in (first, *rest)])  # fmt: skip

    first, rest = uniform(4, 2, 3), uniform(2, 2, 3, seed=1)
    delay = uniform(size, low=0.3, high=2.9)
    inputs = [value.to(device).requires_grad_() for value in (first, rest, delay)]
    assert gradcheck(
        lambda first, rest, delay: run(first, rest.unsqueeze(1).unbind(0), delay), inputs
    )


@pytest.mark.parametrize("interp", ["previous", "nearest"])
def test_values_of_the_signal_give_delays_no_gradient(interp):
    layer, x = a_delay(interp), uniform(6, 2, 5).requires_grad_()
    layer(x).sum().backward()
    assert not layer.delay.grad.any()
    assert x.grad.any()


@pytest.mark.parametrize("interp", ["linear", "gaussian"])
def test_delays_out_of_bounds_count_as_the_bounds(interp):
    outside = torch.tensor([-1.0, 0.2, 1.5, 4.0, 9.0])
    layer = a_delay(interp, min_delay=0.5, delay_init=lambda _: outside)
    inside = a_delay(interp, delay_init=lambda _: outside.clamp(0.5, 4.0))
    x = uniform(8, 2, 5)
    y = layer(x)
    assert torch.equal(y, inside(x))
    y.square().sum().backward()
    assert (layer.delay.grad != 0).tolist() == [False, False, True, True, False]
    layer.clamp_delays_()
    assert layer.delay.tolist() == [0.5, 0.5, 1.5, 4.0, 4.0]
    layer.round_delays_()
    assert layer.delay.tolist() == [0.5, 0.5, 2.0, 4.0, 4.0]


def test_a_planted_delay_is_found_from_afar():
    """A Gaussian sees it first, and shrinks; a straight line would see one step."""
    planted = torch.tensor([2.0, 17.0, 9.0, 20.0])
    teacher = Delay(4, 1.0, delay=20.0, interp="nearest", delay_init=lambda _: planted)
    layer = Delay(4, 1.0, delay=20.0, interp="gaussian", delay_init=lambda d: d.fill_(10.0))
    x = spikes(60, 4, 4, rate=0.1)
    target = teacher(x).detach()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.5)
    for epoch in range(60):
        layer.sigma = max(8.0 * 0.93**epoch, 0.5)
        layer.clear()
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
        layer.clamp_delays_()
    layer.round_delays_()
    assert layer.delay.tolist() == planted.tolist()


# -- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "interp"),
    [
        *(
            (running, interp)
            for running in ("reference", "capturable")
            for interp in INTERPOLATIONS
        ),
        ("triton", "linear"),
        ("triton", "gaussian"),
    ],
)
def test_steps_equal_a_sequence(interp, running, large_tiles, device):
    """And go on from one another; of any number of axes."""
    shape, capturable = (2, 3), running == "capturable"
    options = {"delay_shape": (2, 1), "delay_init": lambda _: torch.tensor([[0.4], [2.5]]),
               "batch_size": 3, "backend": None if capturable else running}  # fmt: skip
    layer, twin = (
        Delay(shape, 0.5, delay=2.7, interp=interp, capturable=capturable, **options).to(device)
        for _ in range(2)
    )
    x = uniform(9, 3, *shape).float().to(device)
    expected = layer(x)
    y = torch.cat([twin.scan(x[:2]), stepped(twin, x[2:4]), twin(x[4:])])
    assert_close(y, expected, rtol=1e-6, atol=1e-6)
    assert_close(twin(x[0]), layer(x[0]), rtol=1e-6, atol=1e-6)


@every_interp
def test_some_samples_begin_again(interp):
    layer, x = a_delay(interp), uniform(6, 3, 5)
    layer(x[:3])
    layer.clear(torch.tensor([False, True, False]))
    y = layer(x[3:])
    whole, fresh = a_delay(interp)(x)[3:], a_delay(interp)(x[3:])
    assert_close(y[:, [0, 2]], whole[:, [0, 2]])
    assert_close(y[:, 1], fresh[:, 1])
    layer.clear()
    assert_close(layer(x[3:, :1]), fresh[:, :1])  # of another batch
    with pytest.raises(ValueError, match="batch of 3"):
        layer(x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
@every_interp
def test_signals_of_every_kind(interp, dtype, device):
    """The output is in the record's dtype; a floating signal gets its gradient in its own."""
    layer = a_delay(interp, dtype=torch.float32).to(device)
    x = spikes(6, 2, 5).to(dtype).to(device)
    y = layer(x)
    assert y.dtype == torch.float32
    layer.clear()
    assert_close(stepped(layer, x), y, rtol=1e-6, atol=1e-6)
    if dtype == torch.bool:
        layer.clear()
        assert torch.equal(layer.scan(pack_spikes(x)), y)
    if dtype.is_floating_point:
        layer.clear()
        layer(x.requires_grad_()).sum().backward()
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_interp
def test_half_precision_is_rounded_once(interp, dtype):
    layer, exact = a_delay(interp, dtype=dtype), a_delay(interp)
    exact.delay.data.copy_(layer.delay)
    x = uniform(6, 2, 5).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y.double(), exact(x), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_saved_state_holds_the_width():
    layer, twin = a_delay("gaussian", sigma=3.0), a_delay("gaussian")
    layer(uniform(3, 2, 5))
    layer.sigma = 0.7
    twin.load_state_dict(layer.state_dict())
    assert twin.sigma == 0.7
    assert same(snapshot(twin), snapshot(layer))
    state = layer.state_dict()
    state["sigma"] = torch.tensor(-1.0)
    with pytest.raises(RuntimeError, match="sigma must be at least 0, but is -1"):
        twin.load_state_dict(state)
    del state["sigma"]
    twin.load_state_dict(state)  # of a state without it the width stays
    assert twin.sigma == 0.7


def test_other_sizes_clear():
    layer = a_delay()
    layer(uniform(3, 2, 5))
    layer.max_delay = 6.0
    assert layer.signal_.recordsz == 7
    assert not layer.signal_.value.any()
    layer(uniform(3, 2, 5))
    layer.dt = 0.5
    assert layer.signal_.recordsz == 13
    layer.batchsz = 4
    assert layer.batchedshape == (4, 5)
    assert layer(torch.empty(0, 4, 5)).shape == (0, 4, 5)


@pytest.mark.slow
def test_compiled_it_takes_another_width_without_another_graph(device):
    compiled, eager = (
        a_delay("gaussian", batch_size=2, capturable=capturable).to(device)
        for capturable in (True, False)
    )
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for width in (1.0, 0.8, 0.5, 0.3):
        compiled.sigma = eager.sigma = width
        x = uniform(6, 2, 5).to(device)
        y, expected = run(x), eager(x)
        assert_close(y, expected)
        wanted = torch.autograd.grad(expected.square().sum(), eager.delay)
        assert_close(torch.autograd.grad(y.square().sum(), compiled.delay), wanted)
        compiled.clear()
        eager.clear()
    # The first takes the width for a constant, the second for any; in torch 2.11 each for its own.
    assert counters["stats"]["unique_graphs"] == (4 if torch.__version__ < "2.12" else 2)


def test_it_stands_in_a_sequential():
    net = nn.Sequential(nn.Linear(3, 5), Delay(5, 1.0, delay=4.0), nn.ReLU())
    x = uniform(7, 2, 3).float()
    y = net(x)
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    twin = copy.deepcopy(net)
    twin[1].clear()
    net[1].clear()
    assert_close(torch.stack([twin(row) for row in x]), net(x))


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interp": "cubic"}, "interp must be one of previous, nearest, linear, gaussian"),
        ({"sigma": -1.0}, "sigma must be at least 0, but is -1.0"),
        ({"min_delay": 5.0}, "min_delay must be at most the longest delay, 4.0, but is 5.0"),
        ({"delay_shape": 3}, "delay_shape must broadcast to shape, .5,., but is .3,."),
        ({"delay_shape": (1, 5)}, "delay_shape must broadcast to shape, .5,., but is .1, 5."),
        ({"delay_init": lambda d: d.fill_(float("nan"))}, "delay_init must give finite values"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        a_delay(**options)


def test_a_delay_of_another_shape_is_refused():
    layer = a_delay()
    layer.delay = nn.Parameter(torch.zeros(4))
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"delay has shape .4,., but must have .5,."):
        layer(uniform(2, 5))
    assert same(snapshot(layer), before)
