"""Delays of inputs and of outputs, against the same delays on every connection."""

import copy

import pytest
import torch
from synapses import (
    CLASSES,
    PHYSICS,
    every_kind,
    gradcheck,
    interpreted,
    same,
    snapshot,
    spikes,
    uniform,
)

from tritonsyn import DelayedLinear, functional
from tritonsyn.ops import shared
from tritonsyn.values import ReadRule

F64 = torch.float64
BATCH, INPUTS, OUTPUTS, STEP, LONGEST, SHORTEST = 2, 4, 3, 1.3, 3.7, 0.4
DELAYS = [9.0, -1.0, 2.6, 0.9]
"""Too long, too short, whole, fractional."""
BOTH = pytest.mark.parametrize("delays", ["input", "output"])


def layer_of(delays, kind="single", each=False, device=None, **options):
    """A layer; with ``each`` the constants differ between its inputs, and are learned."""
    constants = PHYSICS[kind].values()
    if each:
        constants = [
            torch.nn.Parameter(c * (1 + 0.1 * torch.arange(INPUTS, dtype=F64))) for c in constants
        ]
    settings = {
        "delay": LONGEST, "min_delay": SHORTEST, "bias": True, "batch_size": BATCH, "dtype": F64,
        "weight_init": lambda t: uniform(*t.shape, seed=1, low=-1).to(t),
        "delay_init": lambda t: torch.tensor(DELAYS, dtype=F64)[: len(t)].to(t),
    }  # fmt: skip
    synapse = CLASSES[kind].partialconstructor(*constants)
    how = {**settings, **options}
    return DelayedLinear(
        INPUTS, OUTPUTS, STEP, synapse=synapse, delays=delays, device=device, **how
    )


def by_connection(layer):
    """A copy that computes every connection by itself."""
    twin = copy.deepcopy(layer)
    twin.strategy = "shift"
    return twin


def run(layer, x):
    """Two sequences and a step that follow each other, and the gradients of the outputs."""
    parts = [layer(x[:3]), layer(x[3:6]), layer(x[6]).unsqueeze(0)]
    y = torch.cat(parts)
    inputs = [*layer.parameters(), *([x] if x.requires_grad else [])]
    return [y, *torch.autograd.grad((y * uniform(*y.shape, seed=9).to(y)).sum(), inputs)]


@every_kind
@BOTH
@pytest.mark.parametrize("each", [False, True])
def test_equals_the_same_delays_on_every_connection(device, each_backend, kind, delays, each):
    if interpreted() and (each or kind == "double"):
        pytest.skip("the kernels see the same as with the other values")
    layer = layer_of(delays, kind, each, device=device)
    twin = by_connection(layer)
    twin.backend = "reference"  # whose connections are tested elsewhere
    x = uniform(7, BATCH, INPUTS, seed=3).to(device)
    found = [run(each, x.clone().requires_grad_()) for each in (layer, twin)]
    torch.testing.assert_close(*found)
    for a, b in zip(layer.synapse.children(), twin.synapse.children(), strict=True):
        torch.testing.assert_close(a.value, b.value)
    assert (
        layer.delay_steps.shape == layer.delay.shape == ((INPUTS,), (OUTPUTS,))[delays == "output"]
    )
    assert layer.delay_steps.tolist() == [3, 1, 2, 1][: len(layer.delay)]


@BOTH
def test_a_tape_packed_spikes_and_a_layer_in_place_give_the_same(delays):
    layer = layer_of(delays)
    x = spikes(7, BATCH, INPUTS)
    wanted = by_connection(layer)(x)
    with copy.deepcopy(layer).unrolled(7) as tape:
        torch.testing.assert_close(torch.stack([tape(row) for row in x]), wanted)
    torch.testing.assert_close(copy.deepcopy(layer)(functional.pack_spikes(x)), wanted)
    layer.synapse.inplace = True
    twin = by_connection(layer)
    torch.testing.assert_close(run(layer, x), run(twin, x))


@BOTH
def test_the_stateless_form_continues(delays):
    weight, x = uniform(OUTPUTS, INPUTS, low=-1), uniform(7, BATCH, INPUTS, seed=3)
    delay = uniform(1, INPUTS, high=5.0) if delays == "input" else uniform(OUTPUTS, 1, high=5.0)
    for other in ({}, {"rise": 0.3}, {"ratio": 0.2}):
        how = {"decay": 0.8, "gain": uniform(INPUTS, low=1, high=2), "max_delay": 4.0, **other}
        wanted, _ = functional.delayed_linear(x, weight, delay.expand(OUTPUTS, INPUTS), **how)
        first, state = functional.delayed_linear(x[:3], weight, delay, **how)
        second, _ = functional.delayed_linear(x[3:], weight, delay, initial=state, **how)
        torch.testing.assert_close(torch.cat((first, second)), wanted)


@BOTH
def test_gradients(delays):
    weight, x = uniform(2, 3, low=-1), uniform(4, 1, 3, seed=3)
    delay = torch.tensor([0.3, 1.4, 2.2], dtype=F64)
    delay = delay.view(1, 3) if delays == "input" else delay[:2].view(2, 1)
    initial = uniform(4, 1, 3, seed=4)
    constants = [torch.tensor(value, dtype=F64) for value in (0.8, 1.5)]

    def function(x, weight, delay, decay, gain, initial):
        how = {"decay": decay, "gain": gain, "max_delay": 3.0, "initial": (initial,)}
        return functional.delayed_linear(x, weight, delay, **how)[0]

    inputs = [x, weight, delay, *constants, initial]
    assert gradcheck(function, [tensor.requires_grad_() for tensor in inputs])


def test_what_is_no_single_product_is_computed_for_each_connection():
    rule, weight = ReadRule("expdecay", 1.0, 4.0), uniform(OUTPUTS, INPUTS)
    rates = torch.tensor(0.2), torch.full((INPUTS,), 0.2)
    by_input, by_output = uniform(1, INPUTS), uniform(OUTPUTS, 1)
    assert all(shared(weight, by_input, [rate], rule) is not None for rate in rates)
    found = [shared(weight, by_output, [rate], rule) is not None for rate in rates]
    assert found == [True, False]
    assert shared(weight, uniform(OUTPUTS, INPUTS), rates[:1], rule) is None
    assert not shared(weight[:1], by_output[:1], rates[:1], rule).by_input  # a single output


@BOTH
def test_half_precision_and_autocast(delays):
    exact = layer_of(delays, "double", bias=False)
    x = spikes(20, BATCH, INPUTS)
    wanted = exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        exact.clear()
        assert torch.equal(exact(x), wanted)
    rough = layer_of(delays, "double", bias=False, dtype=torch.bfloat16)
    y, again = rough(x), by_connection(rough)
    again.clear()
    assert y.dtype == torch.bfloat16
    scale = wanted.abs().max().item()
    torch.testing.assert_close(y, again(x), rtol=0, atol=scale * 2**-6)


@BOTH
def test_the_layer_knows_its_kind_of_delays(delays):
    layer = layer_of(delays)
    assert layer.delays == delays and f"delays={delays}" in repr(layer)
    layer.round_delays_()
    assert layer.delay.tolist() == pytest.approx([2.6, 0.4, 2.6, 1.3][: len(layer.delay)])
    with pytest.raises(RuntimeError, match="delay"):
        layer_of("connection", delay_init=None).load_state_dict(layer.state_dict())
    with pytest.raises(AttributeError):
        layer.delays = "connection"


def test_wrong_values():
    with pytest.raises(ValueError, match=r"delays must be one of connection, input, output, but"):
        layer_of("axon")
    x, weight = uniform(3, BATCH, INPUTS), uniform(OUTPUTS, INPUTS)
    message = r"delay has shape \(4, 1\), but must have \(3, 4\), or shared \(1, 4\) or \(3, 1\)"
    with pytest.raises(ValueError, match=message):
        functional.delayed_linear(x, weight, uniform(4, 1), decay=0.5, max_delay=1.0)


@pytest.mark.parametrize("delays", ["connection", "input", "output"])
@pytest.mark.parametrize(("name", "size"), [("delay", (1,)), ("weight", (OUTPUTS, INPUTS + 1))])
def test_a_parameter_that_does_not_fit_changes_nothing(delays, name, size):
    layer, x = layer_of(delays, delay_init=None), spikes(3, BATCH, INPUTS)
    layer(x)
    whole = getattr(layer, name).detach().int()
    setattr(layer, name, torch.nn.Parameter(torch.zeros(size, dtype=F64)))
    before = snapshot(layer.synapse)
    calls = lambda: layer(x[0]), lambda: layer(x), lambda: layer.scan(x, [1, 2])
    for call in (*calls, lambda: layer.delay_steps):
        with pytest.raises(ValueError, match=rf"{name} has shape .*, but must have"):
            call()
    setattr(layer, name, torch.nn.Parameter(whole, requires_grad=False))
    with pytest.raises(TypeError, match=rf"{name} must be a dense floating tensor, but is"):
        layer(x)
    assert same(before, snapshot(layer.synapse))


def test_reads_are_prepared_once(monkeypatch):
    layer, prepared = layer_of("input", "double", min_delay=0.0, backend="reference"), []
    synapse, make_plan = layer.synapse, layer.synapse._planned_read
    monkeypatch.setitem(
        synapse.__dict__, "_planned_read", lambda *a: prepared.append(a) or make_plan(*a)
    )
    times, x = uniform(BATCH, INPUTS), spikes(BATCH, INPUTS)
    with torch.no_grad():
        for _ in range(4):
            layer(x)
            synapse.neg_current_at(times)
    assert len(prepared) == 2
