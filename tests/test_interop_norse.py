"""Modules of tritonsyn in nets of norse: the state goes in and out."""

import math

import adapters
import pytest
import torch
from adapters import F64, build, drive, every_module
from synapses import uniform
from torch import nn

snn = pytest.importorskip("norse.torch")

from tritonsyn import SingleExponentialCurrent  # noqa: E402
from tritonsyn.interop.norse import adapt  # noqa: E402


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def steps(layer, x, state=None):
    """Outputs of single steps, and the state after the last."""
    outputs = []
    for step in x:
        y, state = layer(step, state)
        outputs.append(y)
    return torch.stack(outputs), state


def raw(module, x):
    """Outputs of the module itself, from rest."""
    module.clear()
    return torch.stack([module(step) for step in x])


@every_module
def test_it_holds_the_module(kind):
    adapters.check_adapter(adapt, lambda adapter, x: steps(adapter, x)[0], kind)


def test_what_it_refuses():
    adapters.check_refusals(adapt)
    with pytest.raises(ValueError, match="batch_first=False"):
        adapt(build("linear", batch_first=True))


@every_module
def test_no_state_is_rest_whatever_ran_before(kind):
    """In another batch as well."""
    module, layer = build(kind), adapt(build(kind))
    for seed, batch in enumerate((2, 3, 1)):
        x = drive(kind, batch=batch, seed=seed)
        equal(steps(layer, x)[0], raw(module, x))


@every_module
def test_a_state_is_replayed(kind):
    """Bit for bit, as often as wanted, and nothing happens to it."""
    layer, x = adapt(build(kind)), drive(kind)
    expected, _ = steps(layer, x)
    _, state = steps(layer, x[:3])
    assert isinstance(state, tuple)
    kept = [part.clone() for part in state]
    for _ in range(2):
        equal(steps(layer, x[3:], state)[0], expected[3:])
        steps(layer, drive(kind, batch=3, seed=1))  # the batch of something else
        equal(list(state), kept)


@every_module
def test_a_sequence_is_its_steps(kind):
    layer, x = adapt(build(kind)), drive(kind)
    expected, last = steps(layer, x)
    first, state = layer(x[:2])
    second, state = layer(x[2:], state)
    close(torch.cat([first, second]), expected)
    close(state, last)


@pytest.mark.parametrize("kind", ["double", "linear", "delay"])
def test_gradients_flow_through_the_state(kind):
    """Those of steps are those of the module without states, and a state has one of its own."""
    module, layer, x = build(kind), adapt(build(kind)), drive(kind)
    given = [x.clone().requires_grad_() for _ in "ab"]
    raw(module, given[0]).square().sum().backward()
    steps(layer, given[1])[0].square().sum().backward()
    close(given[1].grad, given[0].grad)
    for (name, p), q in zip(module.named_parameters(), layer.parameters(), strict=True):
        assert p.grad.any(), name
        close(q.grad, p.grad)

    _, state = steps(layer, given[0][:3])
    y, _ = layer(x[3], state)
    (gradient,) = torch.autograd.grad(y.sum(), state[0])
    assert gradient.any()
    nudged = (state[0] + 1e-6 * torch.ones_like(state[0]), *state[1:])
    change = (layer(x[3], nudged)[0] - y).sum().item() / 1e-6
    assert math.isclose(change, gradient.sum().item(), rel_tol=1e-4)


def test_a_second_backward_needs_a_state_without_a_graph():
    layer, x = adapt(build("linear")), drive("linear").requires_grad_()
    y, state = layer(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="graph of an earlier one"):
        layer(x, state)[0].sum().backward()
    layer(x, tuple(part.detach() for part in state))[0].sum().backward()
    layer(x)[0].sum().backward()


def test_norses_current_and_ours_are_the_same():
    """norse's LIF is a current, which its LIFBox takes from elsewhere: one of ours, here."""
    factor = 1 - 0.001 * 200  # of a step of 1 ms, by Euler; norse counts in seconds
    tau = -1.0 / math.log(factor)
    synapse = SingleExponentialCurrent(3, 1.0, spike_charge=tau, time_constant=tau)
    net = snn.SequentialState(adapt(synapse), snn.LIFBoxCell())
    x = 2.0 * drive("linear", steps=60).float()
    expected, state = steps(snn.LIFCell(), x)
    y, (_, box) = steps(net, x)
    assert 20 < y.sum() < y.numel()
    assert torch.equal(y, expected)
    torch.testing.assert_close(box.v, state.v, rtol=0, atol=1e-5)


def network():
    """A delayed layer, neurons, and a block of the same inside."""
    torch.manual_seed(0)
    inner = snn.SequentialState(nn.Linear(2, 3), adapt(build("linear", dtype=torch.float32)))
    return snn.SequentialState(
        adapt(build("linear", dtype=torch.float32)), snn.LIFBoxCell(), inner, snn.LICell()
    )


def by_hand(net, x):
    """What it computes, without states of norse but those of its neurons."""
    first, box, inner, integrator = net
    for adapter in (first, inner[1]):
        adapter.module.clear()
    outputs, v, i = [], None, None
    for step in x:
        z, v = box(first.module(step), v)
        y, i = integrator(inner[1].module(inner[0](z)), i)
        outputs.append(y)
    return torch.stack(outputs)


def test_nested_containers():
    """One list of states of the whole net, from which it goes on."""
    net, x = network(), drive("linear", steps=12).float()
    expected = by_hand(net, x)
    assert expected.any()
    equal(steps(net, x)[0], expected)
    equal(steps(net, x)[0], expected)
    y, state = steps(net, x[:5])
    copied = [*state[:2], [*state[2]], state[3]]  # norse writes into the lists that it is given
    equal(steps(net, x[5:], state)[0], expected[5:])
    equal(steps(net, x[5:], copied)[0], expected[5:])
    y, _ = steps(net, drive("linear", batch=5).float())
    assert y.shape == (6, 5, 2)


def test_lift():
    """Step by step inside; the state that comes out goes in again, beside the sequence."""
    net, x = network(), drive("linear", steps=12).float()
    expected = by_hand(net, x)
    lifted = snn.Lift(net)
    equal(lifted(x)[0], expected)
    y, state = lifted(x[:5])
    equal(lifted((x[5:], state))[0], expected[5:])
    single = snn.Lift(net[0])
    equal(single(x)[0], raw(net[0].module, x))


def test_whole_sequences_beside_neurons_of_whole_sequences():
    torch.manual_seed(0)
    layer = adapt(build("linear", dtype=torch.float32))
    net, x = snn.SequentialState(layer, snn.LIF(), nn.Linear(2, 3)), drive("linear", 20).float()
    y, state = net(x)
    first, state = net(x[:8])
    second, _ = net(x[8:], state)
    torch.testing.assert_close(torch.cat([first, second]), y)
    y.sum().backward()
    assert layer.module.delay.grad.any()


def test_a_net_that_feeds_itself():
    layer = adapt(build("delay", dtype=torch.float32))
    net, x = snn.RecurrentSequential(layer, snn.LIFBoxCell()), drive("delay", 12).float()
    y, _ = steps(net, 20 * x)
    again, state = steps(net, 20 * x[:7])
    again = torch.cat([again, steps(net, 20 * x[7:], state)[0]])
    equal(again, y)
    assert y.any() and not y.all()


def test_one_module_in_two_places_has_a_state_in_each():
    module = build("delay")
    net, x = snn.SequentialState(adapt(module), adapt(module)), drive("delay")
    twins = snn.SequentialState(adapt(build("delay")), adapt(build("delay")))
    equal(steps(net, x)[0], steps(twins, x)[0])


def test_it_learns_by_states_that_are_cut():
    """Truncated backpropagation: states are detached every four steps."""
    torch.manual_seed(0)
    net = snn.SequentialState(adapt(build("linear", dtype=torch.float32)), snn.LIFBoxCell())
    net.append(nn.Linear(2, 1))
    net.stateful_layers.append(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    x, losses = drive("linear", steps=16).float(), []
    for _ in range(15):
        state, total = None, 0.0
        for part in x.split(4):
            y, state = steps(net, part, state)
            loss = (y - x.mean()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = [cut(s) for s in state]
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.5 * losses[0]


def cut(state):
    if state is None:
        return None
    parts = [part.detach() for part in state]
    return tuple(parts) if type(state) is tuple else type(state)(*parts)


@pytest.mark.parametrize("options", [{"capturable": True}, {"dtype": torch.bfloat16}])
def test_other_modules(options):
    module, layer = (build("linear", **options) for _ in "ab")
    layer, x = adapt(layer), drive("linear").to(options.get("dtype", F64))
    expected, _ = steps(layer, x)
    equal(expected, raw(module, x))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            _, state = steps(layer, x[:3])
            equal(steps(layer, x[3:], state)[0], expected[3:])


def test_a_state_of_something_else_is_refused():
    layer, x = adapt(build("linear")), drive("linear")
    _, state = layer(x)
    _, box = snn.LIFBoxCell()(x[0])
    for wrong in (box, state[:1], [*state], uniform(4, 2, 3)):
        with pytest.raises((TypeError, ValueError), match=r"^state "):
            layer(x[0], wrong)
    with pytest.raises(ValueError, match="batch of 3, but the state is of a batch of 2"):
        layer(drive("linear", batch=3)[0], state)


def test_compiled():
    adapter, x = adapt(build("linear", capturable=True)), drive("linear")
    run = torch.compile(adapter, fullgraph=True, backend="eager")
    expected, _ = steps(adapt(build("linear")), x)
    for _ in range(2):
        close(steps(run, x)[0], expected)
