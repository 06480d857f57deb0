"""Groups of parameters for an optimiser."""

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from tritonsyn import Delay, DelayedLinear, SingleExponentialCurrent, parameter_groups
from tritonsyn.parametrizations import Bounded, Positive


def layer_of(*constants):
    physics = SingleExponentialCurrent.partialconstructor(*constants)
    return DelayedLinear(3, 3, 1.0, synapse=physics, delay=5.0, bias=True)


def named(model, *options, **settings):
    """The names of the parameters in each group, and what it is told."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group.pop("name"): ([names[id(p)] for p in group.pop("params")], group)
        for group in parameter_groups(model, *options, **settings)
    }


def test_each_kind_gets_its_own_rate_and_weights_alone_decay():
    tau = nn.Parameter(torch.tensor(5.0))
    model = nn.Sequential(
        layer_of(1.0, tau), nn.Linear(3, 3), layer_of(2.0, tau), Delay(3, 1.0, delay=5.0)
    )
    model[1].weight = model[0].weight  # shared
    model[2].delay.requires_grad_(False)
    found = named(model, 0.01, delay_lr=0.1, constant_lr=0.001, weight_decay=0.5)
    assert found == {
        "weights": (["0.weight", "2.weight"], {"lr": 0.01, "weight_decay": 0.5}),
        "vectors": (["0.bias", "1.bias", "2.bias"], {"lr": 0.01, "weight_decay": 0.0}),
        "delays": (["0.delay", "2.delay", "3.delay"], {"lr": 0.1, "weight_decay": 0.0}),
        "constants": (["0.synapse.time_constant"], {"lr": 0.001, "weight_decay": 0.0}),
    }


def test_what_is_not_given_is_left_to_the_optimizer():
    model = layer_of(1.0, 5.0)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=0.3, weight_decay=0.2)
    told = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert told == {"weights": (0.3, 0.2), "vectors": (0.3, 0.0), "delays": (0.3, 0.0)}
    delay = model.delay.detach().clone()
    model.delay.grad = torch.zeros_like(delay)
    optimizer.step()
    assert torch.equal(model.delay, delay)


def test_parametrized_and_pruned_ones_are_of_their_kind():
    model = layer_of(nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([5.0] * 3)))
    parametrize.register_parametrization(model.synapse, "time_constant", Positive())
    prune.identity(model, "weight")
    other = layer_of(1.0, 5.0)
    parametrize.register_parametrization(model, "delay", Bounded(0.0, 5.0))
    prune.identity(other, "delay")
    found = {kind: names for kind, (names, _) in named(nn.ModuleList([model, other])).items()}
    assert found == {
        "weights": ["0.weight_orig", "1.weight"],
        "vectors": ["0.bias", "1.bias"],
        "delays": ["0.parametrizations.delay.original", "1.delay_orig"],
        "constants": [
            "0.synapse.spike_charge", "0.synapse.parametrizations.time_constant.original"
        ],
    }  # fmt: skip


def test_a_model_without_parameters_has_no_groups():
    synapse = SingleExponentialCurrent(3, 1.0, spike_charge=1.0, time_constant=5.0)
    assert parameter_groups(synapse) == []
