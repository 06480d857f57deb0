"""Modules of tritonsyn in nets of snnTorch: what it resets and detaches reaches them."""

import copy
import gc
import math
import pickle
import weakref
from functools import partial

import adapters
import pytest
import torch
from adapters import F64, build, drive, every_module
from torch import nn

snn = pytest.importorskip("snntorch")
from snntorch import functional, utils  # noqa: E402

from tritonsyn import SingleExponentialCurrent  # noqa: E402
from tritonsyn.export import ExplicitState  # noqa: E402
from tritonsyn.interop.snntorch import adapt  # noqa: E402

NEURONS = {
    "Leaky": lambda **how: snn.Leaky(0.5, **how),
    "Lapicque": lambda **how: snn.Lapicque(0.5, **how),
    "Synaptic": lambda **how: snn.Synaptic(0.3, 0.5, **how),
    "Alpha": lambda **how: snn.Alpha(0.6, 0.5, **how),
    "RLeaky": lambda **how: snn.RLeaky(0.5, V=0.1, all_to_all=False, **how),
    "RSynaptic": lambda **how: snn.RSynaptic(0.3, 0.5, V=0.1, all_to_all=False, **how),
    "SLSTM": lambda **how: snn.SLSTM(2, 2, **how),
    "SConv2dLSTM": lambda **how: snn.SConv2dLSTM(2, 2, 1, **how),
}


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def stepped(run, x):
    return torch.stack([run(step) for step in x])


def network(kind="Leaky", adapt=adapt, **last):
    """Two delayed layers, each before neurons that keep their states."""
    hidden = [NEURONS[kind](init_hidden=True, **how) for how in ({}, last)]
    first, second = map(adapt, adapters.layers())
    return nn.Sequential(first, hidden[0], second, hidden[1]).to(F64)


def by_hand(net):
    """Rests the modules and the neurons of a net one by one."""
    for part in net.modules():
        if hasattr(part, "clear"):
            part.clear()
        elif isinstance(part, snn.SpikingNeuron):
            part.reset_mem()


def at_rest(module):
    """Of a layer of ours."""
    return module.synapse.current_.at_rest and module.synapse.spike_.at_rest


@every_module
def test_it_holds_the_module(kind):
    adapters.check_adapter(adapt, stepped, kind)


def test_what_it_refuses():
    adapters.check_refusals(adapt)


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("nested", [False, True])
def test_reset_and_detach_with_neurons_of_every_kind(kind, nested):
    """Wherever in the net the module is; the neurons must be children of it, as always there."""
    of = "conv2d" if kind == "SConv2dLSTM" else "linear"
    module, neurons = build(of, dtype=torch.float32), NEURONS[kind](init_hidden=True)
    adapter, x = adapt(module), drive(of).float().requires_grad_()
    net = nn.Sequential(nn.Sequential(adapter) if nested else adapter, neurons)
    for _ in range(1 if kind == "RSynaptic" else 2):  # it goes on with a spike of its own
        stepped(net, x).sum().backward()
        assert module.state()[0].requires_grad
        kept = [part.detach().clone() for part in module.state()]
        type(neurons).detach_hidden()
        equal(list(module.state()), kept)  # which has no graph
        assert module.state()[-1].any()
        utils.reset(net)
        assert at_rest(module)


def test_reset_without_neurons_of_snntorch():
    net = nn.Sequential(adapt(build("linear")), nn.Sigmoid())
    net(drive("linear"))
    utils.reset(net)
    assert at_rest(net[0].module)


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_batches_that_end_short(kind):
    """Each begins at rest: outputs are those of a net that is made anew, bit for bit."""
    net = network(kind)
    for seed, batch in enumerate((4, 4, 3, 1)):
        utils.reset(net)
        x = drive("linear", steps=20, batch=batch, seed=seed)
        expected = stepped(network(kind), x)
        assert expected.any()
        equal(stepped(net, x), expected)


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_it_learns_as_a_loop_that_rests_everything_by_hand(kind):
    nets = network(kind), network(kind, adapt=lambda module: module)
    losses = []
    for net, rest in zip(nets, (utils.reset, by_hand), strict=True):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(8):
            for seed, batch in enumerate((4, 2)):
                rest(net)
                y = stepped(net, drive("linear", steps=12, batch=batch, seed=seed))
                loss = (y.mean((0, 1)) - torch.tensor([0.3, 0.7], dtype=F64)).square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    equal(list(nets[0].parameters()), list(nets[1].parameters()))
    assert losses[:16] == losses[16:]
    assert losses[15] < 0.5 * losses[1]
    assert all(p.grad.any() for p in nets[0][0].module.parameters())


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic", "Lapicque"])
@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.filterwarnings("ignore:The module snntorch.backprop:DeprecationWarning")
def test_its_truncated_backpropagation(kind, every):
    """As a loop that detaches by hand; with short batches, and a rest of the steps at the end."""
    from snntorch import backprop

    criterion = functional.ce_rate_loss()
    nets = network(kind, output=True), network(kind, adapt=lambda m: m, output=True)
    batches = [
        (drive("linear", 1, batch, seed=batch)[0], torch.arange(batch) % 2) for batch in (4, 3)
    ]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    run = {1: backprop.RTRL, 3: partial(backprop.TBPTT, K=3), 8: backprop.BPTT}[every]
    for _ in range(2):
        run(nets[0], batches, optimizers[0], criterion, num_steps=8, time_var=False)
    for x, target in batches * 2:
        by_hand(nets[1])
        for steps in torch.arange(8).split(every):
            spikes = torch.stack([nets[1](x)[0] for _ in steps])
            optimizers[1].zero_grad()
            criterion(spikes, target).backward()
            optimizers[1].step()
            for part in nets[1].modules():
                if hasattr(part, "detach_state"):
                    part.detach_state()
                for name, hidden in part.named_buffers(recurse=False):
                    if name in ("mem", "syn"):
                        setattr(part, name, hidden.detach())
    equal(list(nets[0].parameters()), list(nets[1].parameters()))
    before = network(kind).parameters()
    moved = [bool((p != q).any()) for p, q in zip(nets[0].parameters(), before, strict=True)]
    assert moved[2:] == [True, True]
    assert all(moved) == (every > 1)  # delays reach further back than one step


def test_whole_sequences():
    """Neurons without a loop take sequences, and so do our modules."""
    module, x = adapters.layers(dtype=torch.float32)[0], drive("linear", steps=20).float()
    net = nn.Sequential(adapt(module), snn.LeakyParallel(8, 8))
    y = net(x)
    assert y.any()
    utils.reset(net)
    assert at_rest(module)
    equal(net(x), y)
    y.sum().backward()
    assert module.delay.grad.any()


def test_states_that_the_net_passes_on():
    """Where neurons do not hide their states, the net's children are reset by name all the same."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.neurons = adapt(adapters.layers()[0]), snn.Leaky(0.5)

        def forward(self, x):
            utils.reset(self)
            mem, spikes = self.neurons.reset_mem(), []
            for step in x:
                spike, mem = self.neurons(self.layer(step), mem)
                spikes.append(spike)
            return torch.stack(spikes)

    net, x = Net().to(F64), drive("linear", steps=12)
    expected = net(x)
    assert expected.any()
    assert net(x[:, :1]).shape == (12, 1, 8)
    equal(net(x), expected)


def test_snntorchs_current_and_ours_are_the_same():
    """``Synaptic`` is a current and ``Leaky`` behind it; the current may be one of ours."""
    tau = -1.0 / math.log(0.9)
    synapse = SingleExponentialCurrent(3, 1.0, spike_charge=tau, time_constant=tau, dtype=F64)
    ours = nn.Sequential(adapt(synapse), snn.Leaky(0.8, init_hidden=True, output=True)).to(F64)
    theirs = snn.Synaptic(0.9, 0.8, init_hidden=True, output=True).to(F64)
    utils.reset(ours)
    x = 0.1 * drive("linear", steps=60)
    for step in x:
        (spikes, mem), (expected, _, voltage) = ours(step), theirs(step)
        equal(spikes, expected)
        torch.testing.assert_close(mem, voltage, rtol=1e-6, atol=1e-6)
    assert ours[1].mem.any()


def test_copies_are_reset_and_detached_too():
    """Those of snnTorch's own neurons are not."""
    adapter, neurons = adapt(build("linear")), snn.Leaky(0.5, init_hidden=True)
    for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        stepped(other, drive("linear").requires_grad_())
        snn.Leaky.detach_hidden()
        assert not other.module.state()[0].requires_grad
        utils.reset(nn.Sequential(neurons, nn.Sequential(other)))
        assert at_rest(other.module)


def test_an_exported_net_is_left_out():
    """A program takes its state as an argument; the net that it was made of goes on."""
    net, x = nn.Sequential(adapt(build("linear"))), drive("linear")
    program = ExplicitState(net)
    state, outputs = program.initial_state(x[0]), []
    for step in x:
        y, *state = program(step, *state)
        outputs.append(y)
    for _ in range(2):
        given = stepped(net, x.clone().requires_grad_())
        torch.testing.assert_close(torch.stack(outputs), given.detach())
        snn.Leaky.detach_hidden()
        assert not net[0].module.state()[0].requires_grad
        utils.reset(net)
        assert at_rest(net[0].module)


def test_a_state_that_was_loaded_is_reset():
    """Before anything has run."""
    net, other = network(), network()
    stepped(net, drive("linear"))
    other.load_state_dict(net.state_dict())
    assert not at_rest(other[0].module)
    utils.reset(other)
    assert at_rest(other[0].module)


def test_a_list_of_neurons_that_was_emptied(monkeypatch):
    """As ``SpikingNeuron.init`` does: what is made afterwards is in it again."""
    monkeypatch.setattr(snn.SpikingNeuron, "instances", snn.SpikingNeuron.instances)
    other = adapt(build("linear"))
    snn.SpikingNeuron.init()
    net = network()
    stepped(net, drive("linear"))
    utils.reset(net)
    assert at_rest(net[0].module)
    assert len(snn.SpikingNeuron.instances) == 3
    assert "Hidden" in repr(snn.SpikingNeuron.instances)
    del other


def test_adapters_are_not_kept_alive():
    adapter = adapt(build("linear"))
    kept = weakref.ref(adapter.module)
    del adapter
    gc.collect()
    assert kept() is None


def test_all_nets_are_reset_at_once():
    """As in snnTorch, which asks a net for its kinds of neurons only."""
    nets = network(), network()
    for net in nets:
        stepped(net, drive("linear"))
    utils.reset(nets[0])
    for net in nets:
        assert at_rest(net[0].module)
        assert not net[1].mem.any()


def test_one_module_is_reset_by_name():
    adapter = adapt(build("linear"))
    adapter(drive("linear"))
    adapter.reset_mem()
    assert at_rest(adapter.module)


def test_two_adapters_of_one_module():
    module, x = build("linear"), drive("linear")
    net = nn.ModuleList([adapt(module), adapt(module)])
    y = torch.stack([net[t % 2](step) for t, step in enumerate(x)])
    equal(y, stepped(build("linear"), x))
    utils.reset(net)
    equal(stepped(net[1], x), y)


def test_a_second_backward_needs_a_reset():
    net, x = network(), drive("linear").requires_grad_()
    stepped(net, x).sum().backward()
    with pytest.raises(RuntimeError, match=r"second time|graph of an earlier"):
        stepped(net, x).sum().backward()
    utils.reset(net)
    stepped(net, x).sum().backward()
    with torch.no_grad():
        utils.reset(net)
        y = stepped(net, x)
    equal(y, stepped(network(), x).detach())


@pytest.mark.parametrize("grad", [False, True])
def test_capturable(grad):
    """Its batch is set, as everywhere."""
    module = build("linear", capturable=True)
    net, x = nn.Sequential(adapt(module), snn.Leaky(0.5, init_hidden=True)).to(F64), drive("linear")
    with torch.set_grad_enabled(grad):
        expected = stepped(net, x)
        utils.reset(net)
        equal(stepped(net, x), expected)
        utils.reset(net)
        with pytest.raises(ValueError, match="set batchsz"):
            net(x[0, :1])
        module.batchsz = 1
        equal(stepped(net, x[:, :1]), expected[:, :1])


def test_compiled():
    adapter, x = adapt(build("linear", capturable=True)), drive("linear")
    run = torch.compile(adapter, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(stepped(run, x), stepped(build("linear"), x))
        utils.reset(nn.Sequential(adapter))
