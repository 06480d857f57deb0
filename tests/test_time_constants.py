"""Time constants that learning makes equal, or brings to where no arithmetic can follow."""

import math

import pytest
import torch
from synapses import CLASSES, PHYSICS, every_kind, make, uniform
from torch import nn
from torch.func import functional_call

from tritonsyn import DelayedLinear, DoubleExponentialCurrent, RecordTensor, functional

F32, F64 = torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
INF = math.inf


def pair(decay, rise, device="cpu", dtype=F64, step_time=1.0, **options):
    """A double synapse that has learned these time constants, one value or one per synapse."""
    taus = {
        "tc_decay": torch.as_tensor(decay, dtype=dtype),
        "tc_rise": torch.as_tensor(rise, dtype=dtype),
    }
    learned = {n: nn.Parameter(torch.full_like(t, PHYSICS["double"][n])) for n, t in taus.items()}
    shape = max(tau.numel() for tau in taus.values())
    synapse = DoubleExponentialCurrent(
        shape, step_time, spike_charge=1.0, **learned, dtype=dtype, **options
    ).to(device)
    with torch.no_grad():
        for name, tau in taus.items():
            getattr(synapse, name).copy_(tau)
    return synapse


def truth(decay, rise, s):
    """The current a time s after a spike of unit charge, in float64: exact at equality too.

    With a and b the rates of both it is ``s a b exp(-s (a + b) / 2) sinh(z) / z`` with
    ``z = s (a - b) / 2``, of which a series is used near equality.
    """
    decay, rise, s = decay.double(), rise.double(), s.double()
    near = (decay / rise - 1).abs() < 0.2
    a, b = 1 / decay, 1 / rise
    z = s * (a - b) / 2
    sinhc = torch.ones_like(z)
    for k in range(12, 0, -1):
        sinhc = 1 + z * z / (2 * k * (2 * k + 1)) * sinhc
    distance = torch.where(near, 1.0, decay - rise)
    apart = (torch.exp(-s * a) - torch.exp(-s * b)) / distance
    return torch.where(near, s * a * b * torch.exp(-s * (a + b) / 2) * sinhc, apart)


def spike_then_nothing(steps, synapses, dtype, device):
    x = torch.zeros(steps, 1, synapses, dtype=dtype, device=device)
    x[0] = 1.0
    return x


def largest_error(actual, expected):
    """The largest difference in each column, relative to its largest value; of the worst one."""
    error = (actual.double() - expected).abs().amax(0) / expected.abs().amax(0)
    return error.max().item()


# -- the double synapse about equality -------------------------------------------------------------


AROUND = torch.cat(
    (torch.linspace(0.97, 1.03, 121, dtype=F64), 1 + torch.tensor([1e-3, -1e-5, 1e-9]))
)
RANGES = {
    "apart": torch.linspace(0.1, 0.9, 9, dtype=F64),
    "together": torch.cat((AROUND, torch.linspace(0.9, 0.97, 8, dtype=F64))),
}


@pytest.mark.parametrize(
    ("dtype", "tau", "ratios", "tolerance"),
    [
        (F32, 0.5, "apart", 1e-5), (F32, 5.0, "apart", 1e-5), (F32, 20.0, "apart", 1e-5),
        (F32, 0.5, "together", 2e-4), (F32, 5.0, "together", 2e-4), (F32, 20.0, "together", 2e-4),
        (F32, 1000.0, "apart", 1e-4), (F32, 1000.0, "together", 1e-3),
        (F64, 0.5, "together", 2e-10), (F64, 20.0, "together", 2e-10), (F64, 20.0, "apart", 1e-13),
    ],
)  # fmt: skip
def test_the_current_is_the_closed_form_s_at_any_ratio(dtype, tau, ratios, tolerance, device):
    """Steps, scans and reads between steps, of learned constants that may have crossed."""
    ratios = RANGES[ratios]
    synapse = pair(tau, tau * ratios, device, dtype, delay=3.0)
    decay, rise = synapse.tc_decay.detach(), synapse.tc_rise.detach()
    steps = max(8, int(4 * tau))
    x = spike_then_nothing(steps, len(ratios), dtype, device)
    times = torch.arange(steps, device=device).unsqueeze(-1)
    expected = truth(decay, rise, times)
    ago = torch.tensor([0.0, 0.3, 1.0, 2.6], dtype=dtype, device=device).expand(1, len(ratios), 4)
    with torch.no_grad():
        y, reads = synapse.scan_at(x, ago)
        synapse.clear()
        stepped = torch.stack([synapse(x_t) for x_t in x[:60]])
    peak = expected.amax(0)
    assert ((y[:, 0] - expected).abs() / peak).max() < tolerance
    assert ((stepped[:, 0] - expected[:60]).abs() / peak).max() < tolerance
    for i in range(4):
        late = (times - ago[0, :1, i]).clamp(min=0.0)
        assert ((reads[:, 0, :, i] - truth(decay, rise, late)).abs() / peak).max() < tolerance


@DTYPES
def test_its_gradients_are_the_closed_form_s(dtype, device):
    """They pass smoothly through equality, where those to both time constants are the same."""
    tolerance = {F32: 4e-3, F64: 1e-5}[dtype]
    ratios = AROUND.to(dtype)
    synapse = pair(torch.full_like(ratios, 5.0), 5.0 * ratios, device, dtype)
    taus = [synapse.tc_decay, synapse.tc_rise]
    exact = [tau.detach().double().requires_grad_() for tau in taus]
    x = spike_then_nothing(20, len(ratios), dtype, device)
    y = synapse.scan(x)[:, 0]
    gradients, expected = [], []
    for t in (1, 3, 5, 10, 19):
        gradients.append(torch.stack(torch.autograd.grad(y[t].sum(), taus, retain_graph=True)))
        wanted = truth(*exact, torch.tensor(float(t), device=device)).sum()
        expected.append(torch.stack(torch.autograd.grad(wanted, exact)))
    assert largest_error(torch.stack(gradients), torch.stack(expected)) < tolerance


class Delayed(nn.Module):
    """A scan, and what is read between its steps."""

    def __init__(self, synapse):
        super().__init__()
        self.synapse = synapse

    def forward(self, x, ago):
        self.synapse.clear()
        return self.synapse.scan_at(x, ago)


@pytest.mark.parametrize("ratio", [0.5, 0.999, 1 - 1e-5, 1.0, 1 + 1e-5, 1.001, 2.0])
def test_gradients_of_all_that_has_one(ratio, device):
    """To input, times and constants, against differences, at equality and on both sides of it."""
    program = Delayed(pair(3.0, 3.0 * ratio, device, delay=3.0))
    program.synapse.spike_charge = nn.Parameter(torch.tensor(2.0, dtype=F64, device=device))
    names = [name for name, _ in program.named_parameters()]

    def function(x, ago, *constants):
        return functional_call(program, dict(zip(names, constants, strict=True)), (x, ago))

    x = uniform(4, 1, 1, seed=1).to(device).requires_grad_()
    ago = torch.tensor([[[0.3, 1.7, 2.5]]], dtype=F64, device=device, requires_grad=True)
    constants = [p.detach().clone().requires_grad_() for p in program.parameters()]
    # Differences over more than the rounding of large components.
    assert torch.autograd.gradcheck(function, [x, ago, *constants], eps=1e-4, atol=1e-6)


def test_apart_they_are_what_they_were_given_as(device):
    """Bit for bit: beyond three hundredths, the formulas as they stand."""
    ratios = torch.tensor([0.1, 0.5, 0.9, 0.96], device=device)
    synapse = pair(torch.full((4,), 7.3), 7.3 * ratios, device, F32, step_time=0.7)
    decay, rise = synapse.tc_decay, synapse.tc_rise
    dynamics, rates = synapse.coefficients()
    # But for what rounding takes from the decays, and the gain gives back.
    torch.testing.assert_close(dynamics.gain, 1.0 / (decay - rise), rtol=3e-5, atol=0)
    assert torch.equal(rates[0], 0.7 / decay) and torch.equal(rates[1], 0.7 / rise)
    assert torch.equal(dynamics.decays[1], torch.exp(-0.7 / rise))


@DTYPES
def test_crossed_constants_are_those_exchanged(dtype, device):
    """The slower of both is always that of the positive component."""
    taus = torch.tensor([6.0, 3.0, 3.01, 3.0], device=device), torch.full((4,), 3.0, device=device)
    one, other = pair(*taus, device, dtype), pair(*taus[::-1], device, dtype)
    for ours, theirs in zip(one.coefficients(), other.coefficients(), strict=True):
        for a, b in zip(flat(ours), flat(theirs), strict=True):
            assert torch.equal(a, b)
    dynamics = other.coefficients().dynamics
    assert (dynamics.gain > 0).all() and (dynamics.decays[0] > dynamics.decays[1]).all()


def flat(values):
    return [
        v
        for value in values
        for v in (value if isinstance(value, tuple) else (value,))
        if v is not None
    ]


@DTYPES
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_training_goes_through_equality(optimiser, dtype, device):
    """From one order of the constants to the other; where they cross first, they are equal."""
    synapse = pair(5.0, 3.0, device, dtype, delay=2.0)
    taus = [synapse.tc_decay, synapse.tc_rise]
    optimiser = optimiser(taus, lr=0.02)
    x = spike_then_nothing(12, 1, dtype, device)
    ago = torch.tensor([[[0.4]]], dtype=dtype, device=device)
    aim = torch.tensor(3.0, device=device), torch.tensor(5.0, device=device)
    apart = []
    for _ in range(150):
        synapse.clear()
        optimiser.zero_grad()
        y, reads = synapse.scan_at(x, ago)
        pull = sum((tau - a).square() for tau, a in zip(taus, aim, strict=True))
        (y.square().sum() + reads.square().sum() + pull).backward()
        assert y.isfinite().all() and all(tau.grad.isfinite() for tau in taus)
        optimiser.step()
        if taus[1] > taus[0] and 0.0 not in apart:
            taus[1].data.copy_(taus[0])
        apart.append(((taus[0] - taus[1]) / taus[0]).item())
    assert apart[0] > 0.3 and 0.0 in apart and apart[-1] < -0.3
    with pytest.raises(ValueError, match="tc_decay must be greater than tc_rise"):
        synapse.check_constants()


def test_they_are_compared_as_they_are_computed():
    """``5 + 1e-9`` is 5 in float32, and more in float64."""
    close = {"tc_decay": 5.0 + 1e-9, "tc_rise": 5.0}
    tensors = {name: torch.tensor(value, dtype=F64) for name, value in close.items()}
    for dtype in (F32, torch.bfloat16):
        for given in (close, tensors, {**close, "tc_rise": tensors["tc_rise"]}):
            with pytest.raises(ValueError, match=r"greater than tc_rise in torch\.float32.*Alpha"):
                make("double", dtype=dtype, **given)
    synapse = make("double", 1, dtype=F64, **close)
    make("double", dtype=F64, **tensors)
    x = spike_then_nothing(20, 1, F64, "cpu")
    expected = 10.0 * truth(torch.tensor(5.0), torch.tensor(5.0), torch.arange(20))
    assert largest_error(synapse.scan(x)[:, 0], expected.unsqueeze(-1)) < 1e-9
    synapse.to(F32).clear()
    assert largest_error(synapse.scan(x.float())[:, 0], expected.unsqueeze(-1)) < 2e-4
    with pytest.raises(ValueError, match="tc_decay must be greater"):
        synapse.check_constants()


# -- constants beyond what arithmetic can hold -----------------------------------------------------


@every_kind
@DTYPES
@pytest.mark.parametrize("every", [True, False], ids=["every", "last"])
def test_no_learned_time_constant_gives_nan(kind, dtype, every, device, each_backend):
    """Values and gradients are finite, without input and exactly at an observation too."""
    values = torch.tensor([1e-40, 0.0, -1.0, 1e-300, 1e300, INF], dtype=F64, device=device)
    names = list(PHYSICS[kind])[1:]
    learned = {n: nn.Parameter(torch.full((6,), PHYSICS[kind][n], dtype=F64)) for n in names}
    synapse = make(kind, 6, 0.5, **learned, delay=1.0, dtype=dtype).to(device)
    for name in names if every else names[-1:]:
        getattr(synapse, name).data = values.clone()
    x = spike_then_nothing(3, 6, dtype, device).requires_grad_()
    ago = torch.tensor([0.0, 0.5, 0.2], dtype=dtype, device=device).repeat(1, 6, 1)
    ago.requires_grad_()
    y, reads = synapse.scan_at(x, ago)
    synapse.clear()
    stepped = torch.stack([synapse(x_t) + synapse.current_at(ago)[..., 0] for x_t in x])
    assert torch.equal(reads[..., 0], y) and torch.equal(stepped, 2 * y)
    assert y.isfinite().all() and reads.isfinite().all()
    total = y.square().sum() + reads.square().sum() + stepped.square().sum()
    for gradient in torch.autograd.grad(total, [x, ago, *(getattr(synapse, n) for n in names)]):
        assert gradient.isfinite().all()


@every_kind
def test_the_shortest_time_constant(kind, device):
    """Below it every number and every tensor counts as it; above it they count as themselves."""

    def gain(value, dtype=F32):
        names = list(PHYSICS[kind])[1:]
        learned = {n: nn.Parameter(torch.tensor(PHYSICS[kind][n], dtype=F64)) for n in names}
        synapse = make(kind, 1, 0.5, **learned, dtype=dtype).to(device)
        for name in names:
            getattr(synapse, name).data.fill_(value)
        return synapse.coefficients().dynamics.gain.item()

    shortest = 0.5 * 2.0**-32
    assert math.isfinite(gain(shortest))
    assert gain(1e-40) == gain(-3.0) == gain(0.0) == gain(1e-12) == pytest.approx(gain(shortest))
    assert gain(1e-9) == pytest.approx(gain(1.0) * 1e9, rel=1e-4)
    assert gain(1e-40, F64) == pytest.approx(gain(1.0, F64) * 1e40)
    if kind != "double":
        assert make(kind, 1, 0.5, time_constant=1e-60).coefficients().dynamics.gain == gain(0.0)


def test_an_infinite_time_constant_does_not_decay(device, each_backend):
    synapse = make("single", 1, spike_charge=1e30, time_constant=1e300, device=device)
    y = synapse.scan(spike_then_nothing(4, 1, F32, device)).flatten()
    assert y[0] > 0 and y.unique().numel() == 1


@pytest.mark.parametrize("strategy", ["shift", "gemm", "events"])
@every_kind
def test_a_layer_of_them_is_finite(kind, strategy, device):
    learned = {n: nn.Parameter(torch.tensor(v)) for n, v in PHYSICS[kind].items()}
    synapse = CLASSES[kind].partialconstructor(**learned)
    layer = DelayedLinear(
        3, 2, 0.5, synapse=synapse, delay=2.0, strategy=strategy, device=device,
        delay_init=lambda t: torch.tensor([[0.0, 0.5, 0.2], [2.0, 1.0, 1.7]]),
    )  # fmt: skip
    for name in list(PHYSICS[kind])[1:]:
        getattr(layer.synapse, name).data.fill_(1e-40)
    y = layer.scan(torch.ones(6, 1, 3, dtype=torch.bool, device=device))
    y.square().mean().backward()
    assert y.isfinite().all()
    for parameter in layer.parameters():
        assert parameter.grad.isfinite().all()


# -- siblings: decays and charges ------------------------------------------------------------------


def test_a_read_with_a_time_constant_that_reaches_zero(device, each_backend):
    record = RecordTensor(0.5, 1.0, torch.zeros(1, 4, device=device))
    for value in (1.0, 2.0):
        record.push(torch.full((1, 4), value, device=device))
    tau = torch.tensor([0.0, 1e-40, -1.0, 2.0], device=device, requires_grad=True)
    for time, expected in ((0.0, [2.0] * 4), (0.25, [0.0, 0.0, 0.0, math.exp(-0.125)])):
        y = record.select(time, "expdecay", interp_kwargs={"time_constant": tau})
        assert y.flatten().tolist() == pytest.approx(expected)
        (grad,) = torch.autograd.grad(y.sum(), tau)
        assert grad.isfinite().all()
    rate = torch.tensor([INF, 1e38, 0.0, 1.0], device=device)
    y = record.select(0.0, "expratedecay", interp_kwargs={"rate_constant": rate})
    assert y.flatten().tolist() == [2.0] * 4


def test_an_interpolation_with_a_time_constant_that_reaches_zero():
    older, at = torch.full((3,), 2.0), torch.tensor([0.0, 0.5, 0.0])
    for tau in (torch.tensor([0.0, 0.0, 1e-40], requires_grad=True), 1e-60):
        y = functional.interp_expdecay(older, older, at, 1.0, time_constant=tau)
        assert y.tolist() == [2.0, 0.0, 2.0]
    y = functional.interp_expdecay(
        older, older, at, 1.0, time_constant=torch.zeros(3).requires_grad_()
    )
    y.sum().backward()


@pytest.mark.parametrize("decay", [0.0, 1e-45, 1e-39, -0.25])
def test_delayed_layers_at_decays_close_to_zero(decay, device):
    """The rate between steps is finite, and so are the gradients to delays and decays."""
    decays = torch.full((1,), decay, device=device, requires_grad=True)
    delay = torch.tensor([[0.5], [0.25]], device=device, requires_grad=True)
    one = torch.ones(2, 1, device=device)
    y, _ = functional.delayed_linear(
        torch.ones(4, 1, 1, device=device), one, delay, decay=decays, step_time=0.5, max_delay=1.0
    )
    assert y[1:, 0, 0].tolist() == pytest.approx([1.0, 1.0 + decay, 1.0 + decay + decay**2])
    assert not y[:, 0, 1].any()
    y.sum().backward()
    assert decays.grad.isfinite().all() and delay.grad.isfinite().all()


def test_a_charge_fits_the_arithmetic():
    for value in (1e300, -1e39, 1e-300, 1e-40):
        for given in (value, torch.tensor(value, dtype=F64)):
            with pytest.raises(ValueError, match=r"spike_charge must be between .* torch\.float32"):
                make("single", spike_charge=given)
    synapse = make("single", 1, spike_charge=1e300, dtype=F64)
    assert synapse(torch.ones(1, 1, dtype=F64)).item() == pytest.approx(1e300 / 5)
    synapse.to(F32)
    with pytest.raises(ValueError, match="spike_charge must be between"):
        synapse.check_constants()
    charge = nn.Parameter(torch.tensor(1.0))
    synapse = make("single", spike_charge=charge)
    charge.data.fill_(1e-42)
    with pytest.raises(ValueError, match="spike_charge must be between"):
        synapse.check_constants()
