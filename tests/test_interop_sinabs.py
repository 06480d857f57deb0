"""Modules of tritonsyn in nets of sinabs: resets, detached states, batch and time on one axis."""

import copy
import math
from functools import partial

import adapters
import pytest
import torch
from adapters import F64, build, drive, every_module
from torch import nn
from torch.testing import assert_close

from tritonsyn import RecordTensor, SingleExponentialCurrent
from tritonsyn.functional import pack_spikes

pytest.importorskip("sinabs")
import sinabs
import sinabs.layers as sl
from sinabs.from_torch import from_model
from sinabs.network import Network

from tritonsyn.interop.sinabs import adapt

equal = partial(assert_close, rtol=0, atol=0)
X = drive("linear", 12).transpose(0, 1)  # [B, T, N]


def scanned(module, x):
    """What the module gives for sequences that have the batch first."""
    return module.scan(x.transpose(0, 1)).transpose(0, 1)


def layer(kind="linear", **squeezed):
    return adapt(build(kind, batch_first=True), **squeezed)


def network():
    """Two delayed layers, the first one deeper, each before neurons."""
    first, second = adapters.layers()
    first.batch_first = second.batch_first = True
    hidden = nn.Sequential(adapt(first), sl.LIF(tau_mem=20.0))
    return nn.Sequential(hidden, adapt(second), sl.ExpLeak(tau_mem=20.0)).double()


def records(module):
    return [part for part in module.modules() if isinstance(part, RecordTensor)]


@every_module
def test_it_holds_the_module(kind):
    def call(adapter, x):
        return adapter(x.transpose(0, 1)).transpose(0, 1)

    adapters.check_adapter(adapt, call, kind, batch_first=True)


def test_what_it_refuses():
    adapters.check_refusals(adapt, batch_first=True)
    with pytest.raises(ValueError, match="batch_first=True"):
        adapt(build("linear"))
    with pytest.raises(TypeError, match="batches"):
        layer(batches=2)
    adapter = layer()
    with pytest.raises(ValueError, match="x has shape"):
        adapter(X[:, 0])
    adapter(X)
    before = copy.deepcopy(adapter.state_dict())
    for model in (adapter, Network(spiking_model=nn.Sequential(adapter))):
        with pytest.raises(ValueError, match="randomize"):
            model.reset_states(randomize=True)
    equal(adapter.state_dict(), before)


@every_module
def test_it_is_a_layer_of_sinabs(kind):
    adapter = layer(kind)
    assert isinstance(adapter, sl.StatefulLayer)
    assert not isinstance(adapter, sl.SqueezeMixin)
    assert adapter.is_state_initialised()
    assert not adapter.does_spike


def test_a_synapse_is_the_filter_in_layers_of_sinabs():
    """By its charge: a spike enters a leak as it is, and a synaptic current decayed by a step."""
    tau, x = 5.0, X.float()
    lif = sl.LIF(tau_mem=20.0, tau_syn=tau, record_states=True)
    lif(x)
    leak = sl.ExpLeak(tau_mem=tau, norm_input=False)(x)
    for gain, expected in ((1.0, leak), (math.exp(-1 / tau), lif.recordings["i_syn"])):
        physics = {"spike_charge": tau * gain, "time_constant": tau}
        adapter = adapt(SingleExponentialCurrent(3, 1.0, **physics, batch_first=True))
        assert_close(adapter(x), expected.detach())


def test_a_net_computes_what_its_parts_do():
    net, parts = network(), network()
    hidden = parts[0][1](scanned(time_first(parts[0][0].module), X))
    expected = parts[2](scanned(time_first(parts[1].module), hidden))
    assert hidden.any()
    y = net(X)
    equal(y, expected)
    y.square().sum().backward()
    assert all(parameter.grad.any() for parameter in net[0][0].parameters())


def time_first(module):
    module.batch_first = False
    return module


@pytest.mark.parametrize(
    "reset", [sinabs.reset_states, lambda net: Network(spiking_model=net).reset_states()]
)
def test_reset_states_leaves_nothing_of_the_last_batch(reset):
    net = network()
    fresh = net(X)
    with pytest.raises(ValueError, match="batch of 1"):
        net(X[:1])
    assert not torch.equal(net(X), fresh)
    reset(net)
    assert all(record.at_rest for record in records(net))
    assert len(records(net)) == 4
    equal(net(X), fresh)
    reset(net)
    assert net(X[:1]).shape == (1, 12, 2)


@every_module
def test_an_adapter_resets_by_itself(kind):
    adapter = layer(kind)
    x = drive(kind).transpose(0, 1)
    fresh = adapter(x)
    assert not torch.equal(adapter(x), fresh)
    adapter.reset_states()
    equal(adapter(x), fresh)
    sinabs.reset_states(adapter)
    equal(adapter(x), fresh)


@pytest.mark.parametrize("of_layers", [False, True])
def test_zero_grad_detaches_the_state_and_clears_gradients(of_layers):
    first, second = adapters.layers()
    first.batch_first = second.batch_first = True
    net = nn.Sequential(adapt(first), adapt(second))  # the second's state has a graph
    net(X).sum().backward()
    before = [record.value.clone() for record in records(net)]
    if of_layers:
        Network(spiking_model=net).zero_grad()
    else:
        sinabs.zero_grad(net)
    equal([record.value for record in records(net)], before)
    assert not any(parameter.grad.any() for parameter in net.parameters())
    net(X).square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    with pytest.raises(RuntimeError, match="freed"):
        net(X).sum().backward()


@every_module
def test_gradients_stop_where_the_state_was_detached(kind):
    adapter, x = layer(kind), drive(kind).transpose(0, 1)
    for detached in (False, True):
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        adapter(first)
        if detached:
            adapter.zero_grad()
        y = adapter(second).sum()
        before, _ = torch.autograd.grad(y, (first, second), allow_unused=True)
        assert (before is None) == detached
        adapter.reset_states()


@every_module
def test_copies_are_reset_and_not_their_originals(kind):
    adapter, x = layer(kind), drive(kind).transpose(0, 1)
    with torch.no_grad():
        adapter(x)
        other = copy.deepcopy(nn.Sequential(adapter))
        sinabs.reset_states(other)
    assert all(record.at_rest for record in records(other))
    assert not any(record.at_rest for record in records(adapter))


@every_module
def test_batch_and_time_on_one_axis(kind):
    x = drive(kind, 12).transpose(0, 1)
    for squeezed in ({"batch_size": 2}, {"num_timesteps": 12}):
        adapter = layer(kind, **squeezed)
        assert isinstance(adapter, sl.SqueezeMixin)
        expected = scanned(build(kind), x)
        equal(adapter(x.flatten(0, 1)), expected.flatten(0, 1))
        for wrong in (None, "x", (x,), pack_spikes(x != 0)):
            with pytest.raises(TypeError, match=r"^x must be a tensor"):
                adapter(wrong)
    net = nn.Sequential(layer(kind, batch_size=2))
    sinabs.utils.set_batch_size(net, 1)
    assert sinabs.utils.get_batch_size(net) == 1
    equal(net(x[:1].flatten(0, 1)), scanned(build(kind), x[:1]).flatten(0, 1))


def test_a_model_with_a_layer_is_converted_to_spikes():
    """``from_model`` puts spiking layers in the place of ReLUs, in a copy of the model."""
    model = nn.Sequential(layer("conv2d", batch_size=2), nn.ReLU(), nn.Flatten())
    spiking = from_model(model, batch_size=2).spiking_model
    assert isinstance(spiking[1], sl.IAFSqueeze)
    assert spiking[0].module is not model[0].module
    x = drive("conv2d", 12).transpose(0, 1)
    currents = scanned(build("conv2d"), x).flatten(0, 1)
    expected = sl.IAFSqueeze(batch_size=2, min_v_mem=-1.0)(currents).flatten(1)
    assert expected.any()
    y = spiking(x.flatten(0, 1))
    equal(y, expected)
    y.sum().backward()
    assert all(parameter.grad.any() for parameter in spiking[0].parameters())


def test_synaptic_operations_are_those_of_other_layers():
    first, second = adapters.layers()
    first.batch_first = True
    net = nn.Sequential(adapt(first), nn.Linear(8, 3).double(), sl.IAF())
    with pytest.deprecated_call():
        whole = Network(spiking_model=net, synops=True)
    whole(X)
    found = whole.synops_counter.get_layer_statistics()
    assert list(found["parameter"]) == ["1"]
    assert list(found["spiking"]) == ["2"]


def test_no_gradients():
    net = network()
    with torch.no_grad():
        y = net(X)
    assert not y.requires_grad
    sinabs.reset_states(net)
    equal(net(X).detach(), y)
    assert y.dtype == F64
