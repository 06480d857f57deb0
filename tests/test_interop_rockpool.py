"""Modules of tritonsyn in nets of rockpool: dictionaries of parameters and state, conversions."""

import copy
import math
from functools import partial

import adapters
import pytest
import torch
from adapters import F64, build, drive
from processes import KINDS
from synapses import RECORDS
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.testing import assert_close

from tritonsyn import Delay, DelayedLinear, SingleExponentialCurrent, parameter_groups
from tritonsyn.functional import pack_spikes

pytest.importorskip("rockpool")
from rockpool.nn.combinators import Residual, Sequential
from rockpool.nn.modules import ExpSynTorch, LIFTorch, LinearTorch, TorchModule

from tritonsyn.interop.rockpool import adapt

equal = partial(assert_close, rtol=0, atol=0)
every_module = pytest.mark.parametrize("kind", KINDS)  # those without axes of positions
X = drive("linear", 12).transpose(0, 1)  # [B, T, N]


def adapted(kind="linear", **options):
    return adapt(build(kind, batch_first=True, **options))


def network():
    """What the states have a graph of are the first weights."""
    torch.manual_seed(0)
    layers = adapters.layers(100.0, torch.float32)
    for layer in layers:
        layer.batch_first = True
    first, last = (adapt(layer) for layer in layers)
    return Sequential(LinearTorch((3, 3), weight=torch.eye(3)), first, LIFTorch(8), last)


def values(dictionary):
    """The leaves of a nested dictionary."""
    for value in dictionary.values():
        yield from values(value) if isinstance(value, dict) else (value,)


@every_module
def test_it_holds_the_module(kind):
    def call(adapter, x):
        return adapter(x.transpose(0, 1))[0].transpose(0, 1)

    adapters.check_adapter(adapt, call, kind, batch_first=True)


def test_what_it_refuses():
    adapters.check_refusals(adapt, batch_first=True)
    with pytest.raises(ValueError, match="batch_first=True"):
        adapt(build("linear"))
    of_axes = Delay((2, 3), 1.0, delay=2.0, batch_first=True)
    for module in (of_axes, *(build(kind, batch_first=True) for kind in ("conv1d", "conv2d"))):
        with pytest.raises(ValueError, match=r"\[B, T, N\]"):
            adapt(module)
    with pytest.raises(ValueError, match="wrong neuron dimension"):
        adapted()(X[..., :2])
    for wrong in (None, "x", [[1.0]], (X,), X.to(torch.complex64), pack_spikes(X != 0)):
        with pytest.raises(TypeError, match=r"^x must be "):
            adapted()(wrong)
    for wrong in (X[0, 0, 0], X.unsqueeze(0), X[..., None, None, None]):
        with pytest.raises(ValueError, match=r"^x has shape .* must have \(B, T, 3\), or \(T, 3\)"):
            adapted()(wrong)
    with pytest.raises(NotImplementedError, match="graph"):
        adapted().as_graph()


@every_module
def test_it_evolves(kind):
    adapter, twin = adapted(kind), build(kind)
    y, state, recordings = adapter(X, record=True)
    outputs = 2 if kind == "linear" else 3
    assert isinstance(adapter, TorchModule)
    assert (adapter.size_in, adapter.size_out) == (3, outputs)
    assert len(adapter.shape) == (2 if kind == "linear" else 1)
    assert (adapter.spiking_input, adapter.spiking_output) == (True, False)
    assert adapter.class_name == type(twin).__name__
    assert adapter.dt == 1e-3
    assert recordings == {}
    expected = twin.scan(X.transpose(0, 1))
    equal(y, expected.transpose(0, 1))
    of_layers = {"linear": ("synapse.current_", "synapse.spike_"), "delay": ("signal_",)}
    assert tuple(state) == {**RECORDS, **of_layers}[kind]
    equal(list(state.values()), [past.detach() for past in twin.state()])
    y.square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(adapter.parameters().astorch(), twin.parameters(), strict=True):
        equal(parameter.grad, other.grad)


def test_a_synapse_is_that_of_rockpool():
    """By its charge: there a spike enters decayed by a step."""
    physics = {"spike_charge": 5.0 * math.exp(-1 / 5), "time_constant": 5.0}
    ours = adapt(SingleExponentialCurrent(3, 1.0, **physics, batch_first=True))
    theirs = ExpSynTorch(3, tau=torch.tensor(5e-3), dt=ours.dt)
    assert_close(ours(X.float())[0], theirs(X.float())[0].detach())


def test_a_sequence_without_a_batch_has_one_sample():
    equal(adapted()(X[0])[0], adapted()(X[:1])[0])


def test_a_net_computes_what_its_parts_do():
    net, parts, x = network(), network(), X.float()
    y, state, recordings = net(x, record=True)
    hidden = parts[1].module(parts[0](x)[0])
    fired = parts[2](hidden)[0]
    assert fired.any()
    equal(y, parts[3].module(fired))
    assert list(state) == ["0_LinearTorch", "1_DelayedLinear", "2_LIFTorch", "3_DelayedLinear"]
    equal(recordings["1_DelayedLinear_output"], hidden)


def test_a_net_trains_and_goes_on_from_call_to_call():
    """As rockpool's own do: with the state, without its graph."""
    net, other = network(), network()
    optimizer = torch.optim.SGD(net.parameters().astorch(), lr=1e-3)
    for part in X.float().chunk(2, 1):
        optimizer.zero_grad()
        net(part)[0].square().sum().backward()
    with torch.no_grad():
        other[1](other[0](X.float())[0])
    assert not any(past.requires_grad for past in values(net[1].state()))
    assert_close(net[1].state(), other[1].state())
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert "LIFTorch" in name or not torch.equal(parameter, before[name]), name


def test_reset_state_leaves_nothing_of_the_last_batch():
    net, x = network(), X.float()
    fresh = net(x)[0]
    assert not torch.equal(net(x)[0], fresh)
    with pytest.raises(ValueError, match="batch of 1"):
        net(x[:1])
    assert net.reset_state() is net
    equal(net(x)[0], fresh)
    net.reset_state()
    assert net(x[:1])[0].shape == (1, 12, 2)


def test_parameters_are_dictionaries_by_family():
    tau = nn.Parameter(torch.tensor(5.0))
    physics = SingleExponentialCurrent.partialconstructor(10.0, tau)
    how = {"delay": 3.0, "bias": True, "batch_first": True}
    adapter = adapt(DelayedLinear(3, 2, 1.0, synapse=physics, **how))
    net = Sequential(adapter, LIFTorch(2))
    held = dict(adapter.module.named_parameters())
    assert list(held) == ["weight", "delay", "bias", "synapse.time_constant"]
    assert net.parameters()["0_DelayedLinear"] == held
    families = ("weights", "delays", "biases", "taus")
    for family, name in zip(families, held, strict=True):
        assert net.parameters(family)["0_DelayedLinear"] == {name: held[name]}
    assert adapter.parameters(("weights", "taus")).keys() == {"weight", "synapse.time_constant"}
    assert adapter.parameters("other") == {}
    assert adapter.simulation_parameters() == {}
    assert {id(p) for p in held.values()} <= {id(p) for p in net.parameters().astorch()}
    double = adapted("double")
    assert double.parameters("taus").keys() == {"tc_decay", "tc_rise"}
    assert double.parameters("charges").keys() == {"spike_charge"}
    register_parametrization(double.module, "tc_rise", nn.Softplus(), unsafe=True)
    assert double.parameters("taus").keys() == {"tc_decay", "parametrizations.tc_rise.original"}


def test_parameter_groups_find_what_is_in_a_net():
    net = network()
    groups = {group["name"]: group["params"] for group in parameter_groups(net)}
    delays = [net[place].module.delay for place in (1, 3)]
    assert list(map(id, groups["delays"])) == list(map(id, delays))


@every_module
def test_attributes_are_set_from_dictionaries(kind, tmp_path):
    adapter, other = adapted(kind), adapted(kind)
    kept = list(other.parameters().astorch())
    with torch.no_grad():
        for parameter in kept:
            parameter.mul_(0.5)
    _, state, _ = adapter(X)
    assert other.set_attributes(adapter.parameters()) is other
    assert not any(past.any() for past in other.state().values())
    other.set_attributes(state)
    equal(other(X)[0], adapter(X)[0])
    assert all(a is b for a, b in zip(kept, other.parameters().astorch(), strict=True))
    with torch.no_grad():
        kept[0].mul_(0.5)
    adapter.save(tmp_path / "parameters.json")
    other.load(tmp_path / "parameters.json")
    expected = [parameter.float().double() for parameter in adapter.parameters().astorch()]
    assert_close([p.double() for p in other.parameters().astorch()], expected)
    assert all(parameter.dtype == torch.float32 for parameter in kept)
    assert_close(other(X)[0].double(), adapter(X)[0], rtol=1e-5, atol=1e-5)
    assert adapter.attributes_named(tuple(adapter.parameters())) == {}
    name, parameter = next(iter(adapter.parameters().items()))
    with pytest.raises(RuntimeError, match=name):
        adapter.set_attributes({name: torch.zeros(7)})
    with pytest.raises(ValueError, match="shape"):
        adapter.set_attributes({next(iter(state)): torch.zeros(7, dtype=F64)})


def test_parameters_are_not_reset():
    """They have no values to go back to."""
    net = network()
    before = {name: p.detach().clone() for name, p in net[1].module.named_parameters()}
    net.reset_parameters()
    equal(dict(net[1].module.named_parameters()), before)


def test_the_state_of_a_net_loads():
    net, other, x = network(), network(), X.float()
    net(x)
    other(x[:1])
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    expected = net[1](x)[0]
    equal(other[1](x)[0], expected)
    equal(copied[1](x)[0], expected)


def test_beside_a_residual_connection():
    physics = SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    square = DelayedLinear(3, 3, 1.0, synapse=physics, delay=3.0, batch_first=True)
    twin, x = copy.deepcopy(square), X.float()
    net = Residual(adapt(square), LinearTorch((3, 3), weight=torch.eye(3)))
    equal(net(x)[0], twin(x) + x)


def test_a_net_offers_the_interface_of_torch():
    net, other = network(), network()
    y = net.to_torch()(X.float())
    equal(y, other(X.float())[0])
    assert {id(p) for p in net[1].module.parameters()} <= {id(p) for p in net.parameters()}


@every_module
def test_a_module_that_rockpool_converts_keeps_what_is_its_own(kind):
    """``TorchModule`` turns what is assigned to it into its own, and sets attributes on it."""
    module, twin, x = build(kind), build(kind), X.transpose(0, 1)
    ours = {part: (dict(vars(part)), dir(type(part))) for part in module.modules()}

    class Net(TorchModule):
        def __init__(self):
            super().__init__(shape=(3, 3))
            self.inner = module

        def forward(self, x):
            return self.inner(x)

    net = Net()
    for part, (attributes, of_class) in ours.items():
        assert isinstance(part, TorchModule)
        assert all(vars(part)[name] is value for name, value in attributes.items())
        assert not (vars(part).keys() - attributes.keys()) & set(of_class)
    for _ in range(4):  # the later ones by plans
        with torch.no_grad():
            equal(net(x)[0], twin(x))
            equal(net(x[0])[0], twin(x[0]))
    assert net.parameters()["inner"].keys() >= dict(twin.named_parameters(recurse=False)).keys()
