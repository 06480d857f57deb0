"""Files of NIR that tritonsyn writes, read and run by other libraries.

They integrate by Euler's rule, so that a current loses the part Δt/τ of itself in a step, or, as
sinabs does, leave amplitudes out. With a synapse of that decay and that amplitude, their results
are ours to rounding; with the one that was written they are as close as the rule is.
"""

import math

import numpy as np
import pytest
import synapses
import torch
from torch import nn

from tritonsyn import DelayedLinear, SingleExponentialCurrent

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")
from tritonsyn.nir import from_nir, to_nir  # noqa: E402

# From 2.6 on nirtorch adds up the edges that lead to a node, and takes nodes in any order.
adds_up = "device" in nirtorch.nir_to_torch.__annotations__
STEP, TAU, MEMBRANE = 0.5, 5.0, 8.0  # ms


class Neuron(nn.Module):
    """A leaky integrate-and-fire neuron by Euler's rule, which is reset to 0."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold, self.r = threshold, MEMBRANE / STEP
        self.v = 0.0

    def forward(self, x):
        v = self.v + (self.r * x - self.v) * STEP / MEMBRANE
        z = (v > self.threshold).float()
        self.v = v * (1 - z)
        return z


def as_lif(neuron, time_unit):
    parameters = (MEMBRANE / time_unit, neuron.r, 0.0, neuron.threshold)
    return nir.LIF(*(np.array(parameter, dtype=np.float32) for parameter in parameters))


def synapse_like(decay, jump, count=3):
    """A synapse with this decay in a step and this current in the step of a spike."""
    tau = -STEP / math.log(decay)
    constants = {"spike_charge": jump * tau, "time_constant": tau}
    return SingleExponentialCurrent(count, STEP, **constants)


def written(model, path, **how):
    """The graph of a model after it went through a file."""
    nir.write(path, to_nir(model, torch.zeros(1, 4), **how))
    return nir.read(path)


def network(charge):
    torch.manual_seed(1)
    first = nn.Linear(4, 3)
    nn.init.uniform_(first.weight, 0.1, 1.0)
    synapse = SingleExponentialCurrent(3, STEP, spike_charge=charge, time_constant=TAU)
    return nn.Sequential(first, synapse, Neuron(threshold=charge / 2))


def input_spikes():
    return synapses.spikes(60, 1, 4, seed=3, rate=0.2).float()


def euler(model):
    """Currents and spikes of a network as a library computes them that follows Euler's rule."""
    first, synapse, neuron = model
    currents = synapse_like(1 - STEP / TAU, synapse.spike_charge / TAU)(first(input_spikes()))
    return currents.detach(), torch.stack([neuron(row) for row in currents]).detach()


def check(model, currents, spikes):
    """Asserts what a library made of a network."""
    ours, our_spikes = euler(model)
    torch.testing.assert_close(currents, ours, rtol=1e-5, atol=1e-6)
    assert torch.equal(spikes, our_spikes)
    assert 0.05 < spikes.mean() < 0.95
    exact = model[1](model[0](input_spikes())).detach()
    assert 0 < (currents - exact).abs().max() < STEP / (2 * TAU) * exact.abs().max()


def test_norse_reads_a_synapse_with_a_neuron(tmp_path):
    norse = pytest.importorskip("norse.torch")
    model = network(charge=2.0)
    how = {"module_map": {Neuron: lambda neuron: as_lif(neuron, 1000.0)}}
    read = norse.from_nir(written(model, tmp_path / "model.nir", **how), dt=STEP / 1000)
    state, currents, spikes = None, [], []
    for x in input_spikes():
        z, state = read(x, state)
        ((synapse, _),) = state.state["1" if "1" in state.state else "2"]
        currents.append(synapse.v.detach())
        spikes.append(z.detach())
    check(model, torch.stack(currents), torch.stack(spikes))


def test_snntorch_reads_a_synapse_with_a_neuron(tmp_path):
    """Its step is 1e-4 in the unit of the graph, and its currents are in units of a jump."""
    importing = pytest.importorskip("snntorch.import_nir")
    model, time_unit = network(charge=2.0), STEP / 1e-4
    how = {"module_map": {Neuron: lambda neuron: as_lif(neuron, time_unit)}}
    how["time_unit"] = time_unit
    read = importing.import_from_nir(written(model, tmp_path / "model.nir", **how))
    (neuron,) = [module for module in read.modules() if type(module).__name__ == "Synaptic"]
    currents, spikes = [], []
    for x in input_spikes():
        spikes.append(read(x)[0].detach())
        currents.append(neuron.syn.detach() * model[1].spike_charge / TAU)
    check(model, torch.stack(currents), torch.stack(spikes))


def test_spikingjelly_reads_a_synapse_with_a_neuron(tmp_path):
    """It takes a jump of 1 only, which is a charge as large as the time constant."""
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    if not adds_up:
        pytest.skip("needs nirtorch 2.6")
    model = network(charge=TAU)
    how = {"module_map": {Neuron: lambda neuron: as_lif(neuron, 1000.0)}}
    graph = written(model, tmp_path / "model.nir", **how)
    read = exchange.import_from_nir(graph, dt=STEP / 1000)
    state, currents, spikes = None, [], []
    for x in input_spikes():
        z, state = read(x, state)
        ((_, current),) = [each for each in state.values() if each is not None]
        currents.append(current.detach())
        spikes.append(z.detach())
    check(model, torch.stack(currents), torch.stack(spikes))


def test_a_net_with_neurons_of_snntorch_goes_both_ways(tmp_path):
    snntorch = pytest.importorskip("snntorch")

    def as_node(leaky):
        tau = STEP / 1000 / (1 - leaky.beta.item())
        return nir.LIF(*(np.array(value) for value in (tau, 1.0, 0.0, leaky.threshold.item())))

    def of_node(node):
        tau, threshold = node.tau.flat[0].item(), node.v_threshold.flat[0].item()
        return snntorch.Leaky(1 - STEP / 1000 / tau, threshold=threshold, init_hidden=True)

    physics = SingleExponentialCurrent.partialconstructor(10.0, TAU)
    layer = DelayedLinear(4, 3, STEP, synapse=physics, delay=4.0)
    layer.round_delays_()
    nn.init.uniform_(layer.weight, 0.0, 0.5)
    model = nn.Sequential(layer, snntorch.Leaky(beta=0.9, init_hidden=True))
    graph = written(model, tmp_path / "model.nir", module_map={snntorch.Leaky: as_node})
    read = from_nir(graph, STEP, {nir.LIF: of_node})
    spikes, again = (torch.stack([net(row) for row in input_spikes()]) for net in (model, read))
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes, again)


@pytest.mark.parametrize("kind", ["single", "double", "alpha"])
def test_sinabs_reads_synapses(kind, tmp_path):
    """It counts in steps and takes amplitudes of 1, which it does not divide by time constants."""
    sinabs = pytest.importorskip("sinabs.nir")
    model = synapses.make(kind, 4, STEP, spike_charge=STEP)
    graph = written(model, tmp_path / "model.nir", time_unit=STEP)
    x = input_spikes()
    y = sinabs.from_nir(graph, batch_size=1)(x.squeeze(1))[0].detach().unsqueeze(1)
    constants = synapses.PHYSICS[kind]
    taus = [constants[name] for name in ("tc_rise", "tc_decay") if name in constants]
    taus = taus or [constants["time_constant"]] * (1 if kind == "single" else 2)
    expected = x
    for tau in taus:  # one after the other, at the steps
        expected = synapse_like(math.exp(-STEP / tau), 1.0, 4)(expected)
    torch.testing.assert_close(y, expected)
    if kind == "single":
        torch.testing.assert_close(y, model(x) * TAU / STEP)


class Integrator(nn.Module):
    """norse's leaky integrator, with the amplitude that NIR has for the input."""

    def __init__(self, node):
        super().__init__()
        module = pytest.importorskip("norse.torch.module.leaky_integrator_box")
        parameters = module.LIBoxParameters(
            tau_mem_inv=torch.from_numpy(1 / node.tau), v_leak=torch.from_numpy(node.v_leak)
        )
        self.cell, self.r = module.LIBoxCell(parameters, dt=STEP / 1000), torch.from_numpy(node.r)

    def forward(self, x, state=None):
        return self.cell(self.r * x, state)


class Held(nn.Module):
    """SpikingJelly's delay of one number of steps."""

    def __init__(self, node):
        super().__init__()
        layer = pytest.importorskip("spikingjelly.activation_based.layer")
        (seconds,) = np.unique(node.delay)
        self.delay = layer.Delay(round(seconds.item() * 1000 / STEP))

    def forward(self, x):
        return self.delay(x)


def linear(node):
    made = nn.Linear(*reversed(node.weight.shape), bias=hasattr(node, "bias"))
    made.load_state_dict(
        {name: torch.from_numpy(getattr(node, name)) for name in made.state_dict()}
    )
    return made


def run_by_nirtorch(graph):
    """Outputs of a graph in nirtorch's order, with integrators of norse, delays of SpikingJelly."""
    makers = {nir.LI: Integrator, nir.Delay: Held, nir.Linear: linear, nir.Affine: linear}
    read = nirtorch.nir_to_torch(graph, makers)
    state, outputs = None, []
    for x in input_spikes():
        y, state = read(x) if state is None else read(x, state)
        outputs.append(y.detach())
    return torch.stack(outputs)


@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_norse_and_spikingjelly_run_a_delayed_layer(delays, tmp_path):
    pytest.importorskip("norse")
    pytest.importorskip("spikingjelly")
    if not adds_up:
        pytest.skip("needs nirtorch 2.6")
    physics = SingleExponentialCurrent.partialconstructor(10.0, TAU)
    how = {"delay": 4.0, "bias": True, "delays": delays}
    if delays != "connection":
        how["delay_init"] = lambda delay: torch.full_like(delay, 3.0)  # one node, one delay there
    layer = DelayedLinear(4, 3, STEP, synapse=physics, **how)
    layer.round_delays_()
    graph = written(layer, tmp_path / "model.nir")
    y = run_by_nirtorch(graph)
    exact = layer(input_spikes()).detach()
    like = synapse_like(1 - STEP / TAU, 10.0 / TAU)
    layer.clear()
    layer.synapse.time_constant, layer.synapse.spike_charge = like.time_constant, like.spike_charge
    torch.testing.assert_close(y, layer(input_spikes()).detach(), rtol=1e-5, atol=2e-6)
    assert 0 < (y - exact).abs().max() < STEP / TAU * exact.abs().max()
