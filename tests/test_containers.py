"""Whole sequences through ``nn.Sequential``, and sequences with the batch first."""

import copy

import pytest
import torch
from synapses import CLASSES, make, same, snapshot, spikes, uniform
from torch import nn

from tritonsyn import Delay, DelayedConv1d, DelayedConv2d, DelayedLinear, functional

BATCH, STEPS = 3, 6
PHYSICS = CLASSES["double"].partialconstructor(10.0, 6.0, 2.0)
ALIKE = CLASSES["single"].partialconstructor(10.0, 6.0)
CONNECTED = {"synapse": PHYSICS, "delay": 4.0}
MODULES = {
    "synapse": (lambda **options: make("alpha", (2, 3), **options), (2, 3)),
    "delay": (lambda **options: Delay(4, 1.0, delay=3.0, **options), (4,)),
    "gaussian": (lambda **options: Delay(4, 1.0, delay=3.0, interp="gaussian", **options), (4,)),
    "dense": (lambda **options: DelayedLinear(4, 2, 1.0, **CONNECTED, **options), (4,)),
    "dendrites": (
        lambda **options: DelayedLinear(
            4, 2, 1.0, **{**CONNECTED, "synapse": ALIKE, "delays": "output"}, **options
        ),
        (4,),
    ),
    "line": (lambda **options: DelayedConv1d(2, 3, 3, 1.0, **CONNECTED, **options), (2, 7)),
    "plane": (lambda **options: DelayedConv2d(2, 3, 2, 1.0, **CONNECTED, **options), (2, 3, 4)),
}
every_module = pytest.mark.parametrize("name", list(MODULES))


class Integrate(nn.Module):
    """A neuron as other libraries have them: a whole sequence, time first, state inside."""

    def forward(self, x):
        potential, emitted = torch.zeros_like(x[0]), []
        for row in x:
            potential = 0.8 * potential + row
            emitted.append((potential > 1.0).to(x) + torch.sigmoid(potential))
            potential = potential * (potential <= 1.0)
        return torch.stack(emitted)


def twins(name):
    """A module, the same with the batch first, and the shape of an element's input."""
    build, shape = MODULES[name]
    module = build()
    turned = copy.deepcopy(module)
    turned.batch_first = True
    return module, turned, shape


@every_module
def test_the_batch_may_come_first(name):
    module, turned, shape = twins(name)
    x = uniform(STEPS, BATCH, *shape).float()
    sequences = x.clone().requires_grad_(), x.transpose(0, 1).clone().requires_grad_()
    for method in ("__call__", "scan"):
        y, z = getattr(module, method)(sequences[0]), getattr(turned, method)(sequences[1])
        assert torch.equal(y, z.transpose(0, 1))
    assert torch.equal(module(x[0]), turned(x[0]))
    found = [
        torch.autograd.grad(each.square().sum(), s)[0]
        for each, s in zip((y, z), sequences, strict=True)
    ]
    torch.testing.assert_close(found[0], found[1].transpose(0, 1))
    assert MODULES[name][0](batch_first=True).batch_first and not module.batch_first


@every_module
def test_what_is_returned_may_be_changed_in_place(name):
    """As by ``nn.ReLU(inplace=True)``, with a graph too."""
    module, turned, shape = twins(name)
    x = uniform(STEPS, BATCH, *shape).float().requires_grad_()
    outputs = module(x), module(x[0]), turned(x.transpose(0, 1))
    before = [y.detach().clone() for y in outputs]
    sum(y.add_(1.0).sum() for y in outputs).backward()
    torch.testing.assert_close([y.detach() - 1.0 for y in outputs], before)


@every_module
def test_autocast_leaves_the_arithmetic_alone(name):
    """In both passes, and where delays have a spread."""
    build, shape = MODULES[name]
    module, x = build(), uniform(STEPS, BATCH, *shape).float().requires_grad_()
    if hasattr(module, "spread"):
        module.spread = 2.0
    found = []
    for enabled in (True, False):
        module.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = module(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    assert all(map(torch.equal, *found))


def test_reads_and_blocks_have_the_batch_first_too():
    synapse = make("single", 3, delay=2.0, batch_first=True)
    x = spikes(STEPS, BATCH, 3)
    twin = copy.deepcopy(synapse)
    twin.batch_first = False
    wanted = twin.scan_at(x, torch.rand(1, 3, 2))
    currents, delayed = synapse.scan_at(x.transpose(0, 1), torch.rand(1, 3, 2))
    assert currents.shape == (BATCH, STEPS, 3) and delayed.shape == (BATCH, STEPS, 3, 2)
    assert torch.equal(currents, wanted[0].transpose(0, 1))
    assert synapse.advance(x.transpose(0, 1)) is None
    layer = DelayedLinear(3, 2, 1.0, **CONNECTED, min_delay=2.0, batch_first=True)
    with layer.unrolled(4):
        assert layer.ahead(x[:3].transpose(0, 1)).shape == (BATCH, 3, 2)
        assert layer(x[3]).shape == (BATCH, 2)


@every_module
def test_refuses_what_has_no_batch_to_come_first(name):
    _, module, shape = twins(name)
    packed = functional.pack_spikes(spikes(STEPS, BATCH, *shape))
    with pytest.raises(TypeError, match=r"\(B, T, \.\.\.\) with batch_first=True"):
        module.scan(packed)
    with pytest.raises(ValueError, match="batch_first=True put time first"):
        module.scan(torch.zeros(BATCH, STEPS, shape[0] + 1, *shape[1:]))
    with pytest.raises(ValueError, match=r"lengths has shape .* one for each sample$"):
        module.scan(torch.zeros(BATCH, STEPS, *shape), [1])
    jagged = torch.nested.nested_tensor(
        [torch.zeros(n, *shape) for n in (2, 3)], layout=torch.jagged
    )
    with pytest.raises(TypeError, match="x must be a dense real tensor"):
        module.scan(jagged)
    with pytest.raises(TypeError, match="batch_first must be True or False"):
        module.batch_first = "yes"


def test_a_sequence_runs_through_a_container_as_its_steps_do():
    net = nn.Sequential(
        Delay(6, 1.0, delay=3.0),
        DelayedLinear(6, 5, 1.0, **CONNECTED, delays="input"),
        Integrate(),
        make("single", 5),
        nn.Linear(5, 4),
        nn.Dropout(0.5),
        Integrate(),
        DelayedLinear(4, 2, 1.0, **CONNECTED, bias=True),
    ).eval()
    x = spikes(STEPS, BATCH, 6).float()
    whole = net(x)
    parts = x
    for module in net:
        if hasattr(module, "clear"):
            module.clear()
            parts = torch.stack([module(row) for row in parts])
        else:
            parts = module(parts)
    torch.testing.assert_close(whole, parts)
    whole.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_sequences_with_the_batch_first_have_two_axes():
    synapse = make("single", 3, batch_first=True)
    before = snapshot(synapse)
    with pytest.raises(ValueError, match=r"x has shape \(3,\), .*with batch_first=True"):
        synapse.scan(torch.ones(3))
    assert same(snapshot(synapse), before)
