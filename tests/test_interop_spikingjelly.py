"""Modules of tritonsyn in nets of SpikingJelly: step modes, resets, memories."""

import adapters
import pytest
import torch
from adapters import F64, build, drive, every_module
from synapses import same, snapshot
from torch import nn

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import base, functional, layer, neuron
from spikingjelly.activation_based.memopt.checkpointing import checkpoint_module

from tritonsyn.export import ExplicitState
from tritonsyn.functional import pack_spikes
from tritonsyn.interop.spikingjelly import adapt


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def stepped(run, x):
    return torch.stack([run(step) for step in x])


def network(mode="s"):
    """Two delayed layers, each before neurons."""
    first, second = adapters.layers()
    net = nn.Sequential(adapt(first), neuron.LIFNode(), adapt(second), neuron.LIFNode())
    functional.set_step_mode(net, mode)
    return net


def raw(net, x):
    """What the net gives, from rest, in steps that a plain loop makes of the modules inside."""
    parts = nn.Sequential(*[getattr(part, "module", part) for part in net])
    for part in parts:
        for method in ("clear", "reset"):
            getattr(part, method, bool)()
    return stepped(parts, x)


@every_module
def test_it_holds_the_module(kind):
    adapters.check_adapter(adapt, stepped, kind)


def test_what_it_refuses():
    adapters.check_refusals(adapt)
    with pytest.raises(ValueError, match="batch_first=False"):
        adapt(build("linear", batch_first=True))


@every_module
def test_it_is_a_module_of_spikingjelly(kind):
    adapter = adapt(build(kind))
    assert isinstance(adapter, base.MemoryModule)
    assert adapter.step_mode == "s"
    assert adapter.supported_step_mode() == ("s", "m")
    with pytest.raises(ValueError, match="step_mode"):
        adapter.step_mode = "x"


@every_module
def test_the_modes_agree(kind):
    """Values, states and gradients, and one goes on where the other ended."""
    single, multi, x = adapt(build(kind)), adapt(build(kind)), drive(kind, steps=8)
    functional.set_step_mode(multi, "m")
    y, z = stepped(single, x), multi(x)
    close(z, y)
    assert torch.equal(z != 0, y != 0)
    y.square().sum().backward()
    z.square().sum().backward()
    for (name, p), q in zip(single.named_parameters(), multi.parameters(), strict=True):
        assert p.grad.any(), name
        close(q.grad, p.grad)
    functional.detach_net(nn.ModuleList([single, multi]))
    close(multi.state, single.state)
    functional.set_step_mode(single, "m")
    functional.set_step_mode(multi, "s")
    close(stepped(multi, x), single(x))


@every_module
def test_a_mode_takes_its_own_axes(kind):
    """Where a step is meant, a sequence would run along the batch of the neurons after it."""
    adapter, x = adapt(build(kind)), drive(kind)
    before = snapshot(adapter)
    for sequence in (x, pack_spikes(x != 0)):
        with pytest.raises(ValueError, match=r'x has shape .* no axis of time in step_mode "s"'):
            adapter(sequence)
    functional.set_step_mode(adapter, "m")
    with pytest.raises(ValueError, match=r"x has shape|but scan takes a sequence"):
        adapter(x[0])
    assert same(snapshot(adapter), before)


def test_nets_in_both_modes():
    x = 3 * drive("linear", steps=12)
    expected = raw(network(), x)
    assert expected.any()
    assert not expected.all()
    equal(stepped(network(), x), expected)
    equal(network("m")(x), expected)
    net = network()
    for mode in "msm":
        functional.set_step_mode(net, mode)
        functional.reset_net(net)
        equal(net(x) if mode == "m" else stepped(net, x), expected)


CONTAINERS = {
    "MultiStepContainer": lambda net: layer.MultiStepContainer(*net),
    "StepModeContainer": lambda net: layer.StepModeContainer(True, "m", *net),
    "multi_step_forward": lambda net: lambda x: functional.multi_step_forward(x, net),
    "of a list": lambda net: lambda x: functional.multi_step_forward(x, list(net)),
    "time last": lambda net: (
        lambda x: layer.TLastMultiStepContainer(*net)(x.movedim(0, -1)).movedim(-1, 0)
    ),
    "in chunks": lambda net: (
        functional.set_step_mode(net, "m")
        or (lambda x: functional.chunk_multi_step_forward(5, x, net))
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    x, net = 3 * drive("linear", steps=12), network()
    expected = raw(network(), x)
    run = CONTAINERS[name](net)
    equal(run(x), expected)
    functional.reset_net(net)
    equal(run(x), expected)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_recurrent_containers(mode):
    """With the module as what feeds back on itself."""
    delay = build("delay")
    one = layer.ElementWiseRecurrentContainer(adapt(build("delay")), torch.add, step_mode=mode)
    other = layer.LinearRecurrentContainer(adapt(build("delay")), 3, 3, step_mode=mode).to(F64)
    for net, mixed in ((one, torch.add), (other, lambda y, x: other.rc(torch.cat((x, y), -1)))):
        for batch in (2, 4):
            x = drive("delay", steps=10, batch=batch)
            delay.clear()
            expected, y = [], torch.zeros_like(x[0])
            for step in x:
                y = delay(mixed(y, step))
                expected.append(y)
            functional.reset_net(net)
            close(net(x) if mode == "m" else stepped(net, x), torch.stack(expected))


@every_module
@pytest.mark.parametrize("mode", ["s", "m"])
def test_reset_and_another_batch(kind, mode):
    """Nothing of the last batch is left; without a reset another batch is an error."""
    net = nn.Sequential(adapt(build(kind)))
    functional.set_step_mode(net, mode)
    run = net if mode == "m" else lambda x: stepped(net, x)
    for seed, batch in enumerate((2, 3, 1)):
        functional.reset_net(net)
        assert net[0].state is None
        x, module = drive(kind, batch=batch, seed=seed), build(kind)
        close(run(x), stepped(module, x))
    with pytest.raises(ValueError, match="call clear"):
        run(drive(kind, batch=2))


@every_module
def test_reset_net_reaches_a_module_that_nothing_holds(kind):
    """By the name of ``RecordTensor.reset``, and so the records of one after the other."""
    module = build(kind)
    net = nn.Sequential(module)
    for seed, batch in enumerate((2, 3, 1)):
        functional.reset_net(net)
        x = drive(kind, batch=batch, seed=seed).requires_grad_()
        y = stepped(net, x)
        equal(y, stepped(build(kind), x))
        y.sum().backward()


def test_detach_net():
    """Truncated backpropagation: the state stays, and what made it gets no gradient."""
    net, x = nn.Sequential(adapt(build("linear"))), drive("linear").requires_grad_()
    first = stepped(net, x[:3])
    functional.detach_net(net)
    second = stepped(net, x[3:])
    equal(torch.cat([first, second]), stepped(build("linear"), x))
    second.sum().backward()
    assert not x.grad[:3].any()
    assert x.grad[3:].any()
    with pytest.raises(RuntimeError, match="graph of an earlier one"):
        stepped(net, x[:1]).sum().backward()
    functional.reset_net(net)
    stepped(net, x).sum().backward()


@every_module
def test_memories(kind):
    """The state is the memory: it goes out, in, and through the functional form."""
    adapter, x = adapt(build(kind)), drive(kind)
    assert base.extract_memories(adapter) == [None]
    assert adapter.get_reset_value("state") is None
    expected = stepped(adapter, x)
    functional.reset_net(adapter)
    stepped(adapter, x[:3])
    taken = base.extract_memories(adapter)
    assert [name for name, _ in base.named_memories(nn.Sequential(adapter))] == ["0.state"]
    equal([*adapter.memories()], taken)
    stepped(adapter, x[:2])
    base.load_memories(adapter, taken)
    equal(stepped(adapter, x[3:]), expected[3:])
    base.load_memories(adapter, [None])
    equal(stepped(adapter, x), expected)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_the_functional_form(mode):
    """Of a net: states in and out, and its own state is left alone, batch included."""
    net, x = network(mode), 3 * drive("linear", steps=8)
    expected = raw(network(), x)
    run, states = base.to_functional_forward(net), tuple(base.extract_memories(net))
    parts = x.split(4) if mode == "m" else x
    for _ in range(2):
        passed, outputs = states, []
        for part in parts:
            (y,), passed = run((part,), passed)
            outputs.append(y)
        equal(torch.cat(outputs).view_as(expected), expected)
        assert base.extract_memories(net)[0] is None
    with pytest.raises(ValueError, match="expected 4 states"):
        run((parts[0],), states[1:])


def test_gradients_flow_through_the_functional_form():
    adapter, given = adapt(build("linear")), drive("linear").requires_grad_()
    run, x = base.to_functional_forward(adapter), drive("linear").requires_grad_()
    passed, outputs = (None,), []
    for step in given:
        (y,), passed = run((step,), passed)
        outputs.append(y)
    torch.stack(outputs).square().sum().backward()
    stepped(build("linear"), x).square().sum().backward()
    close(given.grad, x.grad)


def test_online_training_that_tries_each_step_twice():
    """FPTT keeps all memories before the second try and puts them back after it."""
    from spikingjelly.activation_based.learning import online_learning as online

    class Raw(base.MemoryModule):
        """A memory of SpikingJelly's own, that is loaded before each step and taken after it."""

        def __init__(self, module):
            super().__init__()
            self.module = module
            self.register_memory("past", None)

        def single_step_forward(self, x):
            self.module.clear() if self.past is None else self.module.load_state(self.past)
            y = self.module(x)
            self.past = tuple(part.detach() for part in self.module.state())
            return y

    nets = [nn.Sequential(wrap(build("linear")), neuron.LIFNode()) for wrap in (adapt, Raw)]
    x, target = drive("linear", steps=8), drive("linear", steps=8, seed=1)[..., :2]
    learned = []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        averages = online.fptt_online_training_init_w_ra(optimizer)
        how = {"f_loss_t": nn.functional.mse_loss, "alpha": 0.1, "w_ra": averages}
        online.fptt_online_training(net, optimizer, x, target, **how)
        learned.append(list(net.parameters()))
    close(nets[0][0].state, nets[1][0].past)
    close(*learned)
    for parameter, before in zip(learned[0], build("linear").parameters(), strict=True):
        assert not torch.equal(parameter, before)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_an_exported_net(mode):
    """It takes its state as an argument."""
    net, x = nn.Sequential(adapt(build("linear"))), drive("linear", steps=6)
    functional.set_step_mode(net, mode)
    program, outputs = ExplicitState(net), []
    parts = x if mode == "s" else x.split(3)
    state = program.initial_state(parts[0])
    for part in parts:
        y, *state = program(part, *state)
        outputs.append(y.view(-1, 2, 2))
    close(torch.cat(outputs), stepped(build("linear"), x).detach())


def test_checkpointing_is_refused():
    net, x = checkpoint_module(network("m")), drive("linear").requires_grad_()
    with pytest.raises(RuntimeError, match="called in a backward pass, as gradient checkpoint"):
        net(x).sum().backward()


@pytest.mark.parametrize("mode", ["s", "m"])
def test_it_learns_with_neurons(mode):
    """To fire at a given rate; batches end short."""
    net = network(mode)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        for seed, batch in enumerate((4, 2)):
            functional.reset_net(net)
            x = 3 * drive("linear", steps=12, batch=batch, seed=seed)
            y = net(x) if mode == "m" else stepped(net, x)
            loss = (y.mean((0, 1)) - torch.tensor([0.3, 0.7], dtype=F64)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-2:]) < 0.3 * sum(losses[:2])
    assert all(p.grad.any() for p in net[0].module.parameters())


def test_two_adapters_of_one_module():
    module, x = build("linear"), drive("linear")
    first, second = adapt(module), adapt(module)
    net = nn.ModuleList([first, second])
    y = torch.stack([(first if t % 2 else second)(step) for t, step in enumerate(x)])
    equal(y, stepped(build("linear"), x))
    functional.reset_net(net)
    equal(stepped(second, x), y)


@pytest.mark.parametrize("grad", [False, True])
def test_capturable(grad):
    """Its batch is set, as everywhere."""
    module = build("linear", capturable=True)
    net, x = nn.Sequential(adapt(module)), drive("linear", batch=3)
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match="set batchsz"):
            net(x[0])
        module.batchsz = 3
        for _ in range(2):
            equal(stepped(net, x), stepped(build("linear"), x))
            functional.reset_net(net)


def test_compiled():
    adapter, x = adapt(build("linear", capturable=True)), drive("linear")
    run = torch.compile(adapter, fullgraph=True, backend="eager")
    for _ in range(2):
        close(stepped(run, x), stepped(build("linear"), x))
        functional.reset_net(adapter)
