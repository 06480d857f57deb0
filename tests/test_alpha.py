"""What only the alpha synapse has: two states of one constant, the first of which feeds the second.

What it shares with the others is tested with them, wherever a test runs for every kind.
"""

import copy
import math

import pytest
import torch
from synapses import gradcheck, interpreted, make, same, snapshot, spikes, uniform
from torch import nn

from tritonsyn import (
    AlphaCurrent,
    DelayedLinear,
    DoubleExponentialCurrent,
    SingleExponentialCurrent,
    functional,
)
from tritonsyn.functional import Ring, pack_spikes

F64 = torch.float64
CHARGE, TAU, DT, SLOTS = 10.0, 3.0, 0.7, 4
DECAY, RATIO, GAIN = math.exp(-DT / TAU), DT / TAU, CHARGE / TAU
LONGEST = (SLOTS - 1) * DT
STRATEGIES = pytest.mark.parametrize("strategy", ["shift", "gemm", "bits", "events"])


def alpha(shape=3, **options):
    settings = {"delay": LONGEST, "batch_size": 2, "dtype": F64}
    return make("alpha", shape, DT, **{**settings, **options})


def layer_of(strategy, device, constants=(CHARGE, TAU), **options):
    """Four inputs, three outputs, delays of every sort."""
    delays = torch.tensor([[0.0, DT, LONGEST, -1.0], [0.3, 2 * DT, 9.0, 1.0], [2.0, 0.1, 1.7, 0.9]])
    settings = {
        "delay": LONGEST, "batch_size": 2, "device": device, "dtype": F64, "strategy": strategy,
        "weight_init": lambda t: uniform(*t.shape, seed=1, low=-1.0).to(t),
        "delay_init": lambda t: delays.to(t),
    }  # fmt: skip
    synapse = AlphaCurrent.partialconstructor(*constants)
    return DelayedLinear(4, 3, DT, synapse=synapse, **{**settings, **options})


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- the function ---------------------------------------------------------------------------------


def test_peak_and_slope_of_one_spike(device, each_backend):
    """``Q s / tau^2 exp(-s / tau)`` is highest at ``s = tau``, where its slope is zero."""
    synapse = alpha(1, delay=10 * DT, batch_size=1, device=device)
    for t in range(11):
        synapse(torch.full((1, 1), t == 0, device=device))
    ago = torch.full((1, 1), 10 * DT - TAU, dtype=F64, device=device, requires_grad=True)
    highest = synapse.current_at(ago)
    assert highest.item() == pytest.approx(CHARGE / (TAU * math.e), rel=1e-14)
    (slope,) = torch.autograd.grad(highest.sum(), ago)
    assert abs(slope.item()) < 1e-14
    others = torch.linspace(0.0, 10 * DT, 101, dtype=F64, device=device).view(1, 1, -1)
    assert (synapse.current_at(others) <= highest.detach().unsqueeze(-1)).all()


def test_the_double_synapse_tends_to_it(device, each_backend):
    """As its time constants meet; about the mean of both, the difference is of second order."""
    x = uniform(6, 2, 3, seed=1).to(device)
    sel = uniform(1, 3, 4, seed=2, high=LONGEST).to(device)
    currents, reads = alpha(device=device).scan_at(x, sel)
    options = {"delay": LONGEST, "batch_size": 2, "dtype": F64, "device": device}
    for apart in (1e-2, 1e-3):
        taus = {"tc_decay": TAU + apart / 2, "tc_rise": TAU - apart / 2}
        near = DoubleExponentialCurrent(3, DT, spike_charge=CHARGE, **taus, **options)
        for ours, theirs in zip((currents, reads), near.scan_at(x, sel), strict=True):
            close(theirs, ours, tolerance=apart**2)


def test_a_read_between_steps_is_the_step_there(device, each_backend):
    """A step of any length takes the states to where a read of that time finds them."""
    coarse, fine = (alpha(dt, delay=2 * DT, device=device) for dt in (3, 3))
    fine.dt = DT / 7
    x = uniform(3, 2, 3, seed=1).to(device)
    for row in x:
        coarse(row)
        for part in range(7):
            now = fine(row if part == 0 else torch.zeros_like(row))
    # The last fine step lies six sevenths of a coarse step after the newest observation: advance
    # the coarse synapse by one step without input, and read one seventh before its end.
    coarse(torch.zeros(2, 3, device=device))
    ago = torch.full((1, 3), DT / 7, dtype=F64, device=device)
    close(coarse.current_at(ago), now)


# -- its state ------------------------------------------------------------------------------------


def test_setting_the_current_leaves_the_rise(device, each_backend):
    synapse = alpha(device=device)
    synapse.scan(spikes(6, 2, 3).to(device))
    rise, pointers = synapse.rise_.value.clone(), synapse.rise_.pointer
    given = uniform(2, 3, seed=4).to(device).requires_grad_()
    synapse.current = given
    assert torch.equal(synapse.current, given)
    assert torch.equal(synapse.rise_.value, rise) and synapse.rise_.pointer == pointers
    y = synapse(torch.zeros(2, 3, device=device))
    close(y, (given + RATIO * rise[pointers - 1]) * DECAY)
    (grad,) = torch.autograd.grad(y.sum(), given)
    close(grad, torch.full_like(grad, DECAY))


@pytest.mark.parametrize("delay", [0.0, LONGEST], ids=["undelayed", "delayed"])
def test_a_learned_initial_state(delay, device, each_backend):
    """Gradients to what both records held, to times and inputs, through reads between steps."""

    def program(rise, current, sel, *inputs):
        synapse = alpha(2, delay=delay, batch_size=1, device=device)
        synapse.rise_.latest, synapse.current_.latest = rise, current
        synapse.spike_.incr()
        sel = sel * delay  # of no delay, no times
        return tuple(v for row in inputs for v in (synapse(row), synapse.current_at(sel)))

    sizes = [(1, 2), (1, 2), (1, 2, 2), (1, 2), (1, 2)]
    inputs = [uniform(*size, seed=i).to(device) for i, size in enumerate(sizes)]
    assert gradcheck(program, [value.requires_grad_() for value in inputs])


def test_a_state_of_another_synapse_is_refused():
    """The single synapse has records of the same names but for one; neither takes the other's."""
    single = make("single", 3, DT, delay=LONGEST, batch_size=2, dtype=F64)
    synapse = alpha()
    for ours, theirs, words in ((synapse, single, "Missing key"), (single, synapse, "Unexpected")):
        with pytest.raises(RuntimeError, match=rf"(?s){words}.*rise_"):
            ours.load_state_dict(theirs.state_dict())


def test_the_constructor_of_layers_takes_positions():
    """Constants and options in the order of the single synapse's."""
    given = (CHARGE, TAU, "nearest", 0.01, None, None, True)
    made = [
        cls.partialconstructor(*given)((2, 2), DT, LONGEST, 4)
        for cls in (AlphaCurrent, SingleExponentialCurrent)
    ]
    names = ("spike_charge", "time_constant", "interp_tol", "inplace", "shape", "dt", "batchsz")
    assert [getattr(made[0], n) for n in names] == [getattr(made[1], n) for n in names]
    assert made[0]._spike_mode == "nearest" and made[0]._current_overbound is None
    with pytest.raises(TypeError):
        AlphaCurrent.partialconstructor(*given, 1.0)


# -- in a layer -----------------------------------------------------------------------------------


def materialised(layer, x):
    """Delayed reads of every connection, and their weighted sum, step after step."""
    found = []
    layer.synapse.backend = "reference"
    delays = layer.delay.clamp(0, layer.max_delay).t().unsqueeze(0)
    for row in x:
        layer.synapse(row)
        currents = layer.synapse.current_at(delays)
        found.append(torch.einsum("oi,bio->bo", layer.weight, currents))
    return torch.stack(found)


@STRATEGIES
@pytest.mark.parametrize("fresh", [True, False])
def test_a_current_that_is_set_before_a_sequence(strategy, fresh, device, each_backend):
    """Of a layer at rest, which has nothing under way, and in the middle of a run."""
    constants = [nn.Parameter(torch.tensor(v, dtype=F64, device=device)) for v in (CHARGE, TAU)]
    layer = layer_of(strategy, device, constants)
    oracle = copy.deepcopy(layer)
    first, second = spikes(4, 2, 4).to(device), spikes(5, 2, 4, seed=1).to(device)
    if strategy not in ("bits", "events"):
        first, second = first.to(F64), second.to(F64)
    results = []
    for run, module in ((layer.scan, layer), (lambda x: materialised(oracle, x), oracle)):
        before = [] if fresh else [run(first)]
        given = uniform(2, 4, seed=3).to(device).requires_grad_()
        module.synapse.current = given
        y = torch.cat([*before, run(second)])
        loss = (y * uniform(*y.shape, seed=4).to(device)).sum()
        grads = torch.autograd.grad(loss, [given, *module.parameters()])
        states = [record.value for record in module.synapse.component_records()]
        results.append([y, *grads, *states])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, tolerance=1e-10)


@STRATEGIES
@torch.no_grad()
def test_packed_spikes_and_half_precision(strategy, device, each_backend):
    """In bfloat16 as with its weights and delays, which lose most, in float64."""
    x = spikes(5, 2, 4).to(device)
    half = layer_of(strategy, device).to(torch.bfloat16)
    exact = copy.deepcopy(half).to(F64)
    wanted = exact.scan(x)
    exact.clear()
    close(exact.scan(pack_spikes(x)), wanted)
    error = (half.scan(x).to(F64) - wanted).abs().max()
    assert error <= 8 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()


def test_a_compiled_layer_learns_the_constants(device):
    """Rise and current have one rate, one decay and one coupling, made of one parameter."""
    constants = [nn.Parameter(torch.tensor(v, dtype=F64, device=device)) for v in (CHARGE, TAU)]
    eager = layer_of("shift", device, constants)
    compiled = layer_of("shift", device, copy.deepcopy(constants), capturable=True)
    torch._dynamo.reset()
    scan = torch.compile(compiled.scan, fullgraph=True, backend="aot_eager")
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    results = []
    for module, sequence, single in ((eager, eager.scan, eager), (compiled, scan, step)):
        x = uniform(5, 2, 4, seed=1).to(device).requires_grad_()
        first, second = sequence(x), single(x[0])
        grads = torch.autograd.grad(first.square().sum() + second.sum(), [x, *module.parameters()])
        results.append([first, second, *grads])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


# -- without a module -----------------------------------------------------------------------------


def test_functions_are_what_the_modules_do(device, each_backend):
    """A scan, steps in records of the caller's, and the delayed layer."""
    x = spikes(6, 2, 4).to(device)
    synapse = alpha(4, device=device)
    currents = synapse.scan(x)
    y, (rise, current) = functional.alpha_scan(x, DECAY, RATIO, GAIN, dtype=F64)
    close(y, currents)
    assert torch.equal(current, y[-1])
    close(rise, synapse.rise_.peek())
    head, state = functional.alpha_scan(x[:2], DECAY, RATIO, GAIN, dtype=F64)
    tail, _ = functional.alpha_scan(pack_spikes(x[2:]), DECAY, RATIO, GAIN, state, dtype=F64)
    close(torch.cat((head, tail)), currents)

    gain, decay, coupling = (
        torch.tensor(v, dtype=F64, device=device) for v in (GAIN, DECAY, RATIO)
    )
    records = tuple(torch.zeros(SLOTS, 2, 4, dtype=F64, device=device) for _ in range(2))
    marks = torch.zeros(SLOTS, 2, 4, dtype=torch.bool, device=device)
    for t, row in enumerate(x):
        ring = Ring(records, (t % SLOTS,) * 2, marks, t % SLOTS)
        now, records = functional.step(row, ring, gain, (decay,), coupling=coupling)
        close(now, currents[t])
    for ours, theirs in zip(records, synapse.component_records(), strict=True):
        close(ours, theirs.value)

    layer = layer_of("shift", device)
    how = {"decay": DECAY, "ratio": RATIO, "gain": GAIN, "step_time": DT, "max_delay": LONGEST}
    out, _ = functional.delayed_linear(x, layer.weight, layer.delay, dtype=F64, **how)
    close(out, layer.scan(x))


@pytest.mark.parametrize("per_synapse", [False, True])
def test_gradients_of_the_functions(per_synapse, device, each_backend):
    """To everything, for a decay and a ratio that need not belong together."""
    size = (2,) if per_synapse else ()
    steps = 2 if interpreted() else 4
    x, rise, current = (
        uniform(*s, seed=i).to(device) for i, s in enumerate([(steps, 1, 2), (1, 2), (1, 2)])
    )
    decay, ratio, gain = (uniform(*size, seed=i, low=0.2).to(device) for i in (4, 5, 6))

    def scan(x, decay, ratio, gain, rise, current):
        y, finals = functional.alpha_scan(x, decay, ratio, gain, (rise, current))
        return y, *finals

    def steps_in_a_ring(x, decay, ratio, gain, rise, current):
        records = tuple(torch.stack((v, v)) for v in (rise, current))
        marks = torch.zeros(2, 1, 2, dtype=torch.bool, device=device)
        found = []
        for t, row in enumerate(x.unbind()):
            ring = Ring(records, (t % 2,) * 2, marks, t % 2)
            y, records = functional.step(row, ring, gain, (decay,), coupling=ratio)
            found.append(y)
        return (*found, *records)

    inputs = [v.requires_grad_() for v in (x, decay, ratio, gain, rise, current)]
    assert gradcheck(scan, inputs) and gradcheck(steps_in_a_ring, inputs)


def test_what_does_not_go_together_is_refused():
    x, weight = torch.ones(4, 1, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match="rise and ratio belong to different synapses"):
        functional.delayed_linear(x, weight, weight, decay=0.5, rise=0.2, ratio=0.7, max_delay=2.0)
    with pytest.raises(ValueError, match="initial must hold 2 tensors"):
        functional.alpha_scan(x, 0.5, 0.7, 1.0, (torch.ones(1, 2),))
    record, one = torch.zeros(2, 1, 2), torch.ones(())
    marks = torch.zeros(2, 1, 2, dtype=torch.bool)
    for records, decays in (((record,), (one,)), ((record, record.clone()), (one, one))):
        ring = Ring(records, (0,) * len(records), marks, 0)
        with pytest.raises(ValueError, match="decays"):
            functional.step(x[0], ring, one, decays, coupling=one)
    assert not record.any()


def test_a_run_that_is_resumed_copied_cleared_and_truncated(device):
    """Both states are part of all that a module keeps."""
    synapse = alpha(spike_charge=nn.Parameter(torch.tensor(CHARGE)), device=device)
    synapse.scan(spikes(5, 2, 3).to(device))
    twin, other = copy.deepcopy(synapse), alpha(spike_charge=nn.Parameter(torch.tensor(1.0)))
    other.to(device).load_state_dict(synapse.state_dict())
    x = spikes(2, 3, seed=3).to(device)
    y = synapse(x)
    assert torch.equal(twin(x), y) and torch.equal(other(x), y)
    assert same(snapshot(twin), snapshot(synapse))
    synapse.detach_state()
    assert not any(record.value.requires_grad for record in synapse.component_records())
    assert torch.equal(synapse.current, y)
    synapse.clear()
    assert not any(record.value.any() for record in synapse.children())
