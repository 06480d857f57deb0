"""Plans: calls prepared by earlier ones do what the general path does, and give way to it."""

import copy
import pickle
import weakref

import plans
import pytest
import torch

import tritonsyn
from tritonsyn import ops
from tritonsyn.launch.config import LaunchConfig, forget, override_config
from tritonsyn.launch.launcher import recording


def test_random_programs_are_the_same_without_plans():
    assert sum(plans.compare(seed) for seed in range(60)) > 600


def test_so_they_are_with_kernels(small_tiles):
    assert sum(plans.compare(seed, length=12, backend="triton") for seed in range(4)) > 20


def test_layers_replay_their_launches(small_tiles):
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(2.0, 3.0)
    x, found = plans.numbers(0, 6, 3, 4), []
    for planning in (True, False):
        torch.manual_seed(0)
        how = {"delay": 3.0, "batch_size": 3, "strategy": "shift", "backend": "triton"}
        layer = tritonsyn.DelayedLinear(4, 5, 1.0, synapse=physics, **how).requires_grad_(False)
        layer.synapse.planning = planning
        values = [layer(row) for row in (*[layer.weight[:3]] * 3, *x)]
        for factor in (1.0, 2.0, 3.0):
            layer.clear()
            values.append(layer.scan(factor * x))
        assert len([*filter(None, layer.synapse._plans.values())]) == 2 * planning
        layer.weight.data = layer.weight.data.as_strided((5, 4), (1, 5))
        layer.clear()
        values.append(layer.scan(x))
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Softplus())
        layer.clear()
        values.append(layer.scan(x))
        found.append([*values, *layer.synapse.state_dict().values()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.fixture
def synapse():
    made = tritonsyn.AlphaCurrent(4, 1.0, spike_charge=2.0, time_constant=3.0, delay=2.0)
    for _ in range(2):
        made(torch.ones(1, 4))
        made.current_at(torch.ones(1, 4))
        made.scan(torch.ones(3, 1, 4))
        made.rise_.push(torch.ones(1, 4))
    return made


@pytest.fixture
def general(monkeypatch):
    """Calls of the general path."""
    calls = []

    def counted(name):
        body = getattr(ops, name)
        return lambda *arguments, **how: calls.append(name) or body(*arguments, **how)

    for name in ("step", "select", "scan_ring", "push"):
        monkeypatch.setattr(ops, name, counted(name))
    return calls


def test_what_was_called_once_takes_no_general_path(synapse, general):
    synapse(torch.ones(1, 4))
    synapse(torch.ones(1, 4, requires_grad=True))
    synapse.detach_state()
    synapse.clear()
    synapse(torch.zeros(1, 4))
    synapse.current_at(torch.zeros(1, 4))
    synapse.scan(torch.zeros(3, 1, 4))
    synapse.rise_.push(torch.zeros(1, 4))
    assert not general


def set_backend(synapse):
    tritonsyn.set_backend("reference")


def override(synapse):
    with override_config(LaunchConfig(32)):
        pass


def record_launches(synapse):
    with recording():
        pass


CHANGES = {
    "a constant": lambda synapse: setattr(synapse, "spike_charge", 3.0),
    "a setting": lambda synapse: setattr(synapse, "inplace", True),
    "a rebuild": lambda synapse: setattr(synapse, "dt", 0.5),
    "a conversion": lambda synapse: synapse.to(torch.float64),
    "other memory": lambda synapse: setattr(synapse.current_, "value", torch.ones(3, 1, 4)),
    "a backend": set_backend,
    "an override": override,
    "a recording": record_launches,
    "tables": lambda synapse: forget(),
    "a copy": copy.deepcopy,
    "a pickle": lambda synapse: pickle.loads(pickle.dumps(synapse)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_plan_relies_on_may_change(synapse, general, change):
    changed = CHANGES[change](synapse) or synapse
    for _ in range(4):
        changed(torch.ones(1, 4))
    # A plan is made by the second call of a kind.
    assert general == ["step"] * (1 if changed is synapse else 2)


def test_all_launches_are_recorded(small_tiles):
    how = {"delay": 2.0, "backend": "triton"}
    synapse = tritonsyn.AlphaCurrent(4, 1.0, spike_charge=2.0, time_constant=3.0, **how)
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(2.0, 3.0)
    layer = tritonsyn.DelayedLinear(4, 4, 1.0, synapse=physics, **how).requires_grad_(False)
    with recording(run=True) as made:
        for _ in range(4):
            synapse(torch.ones(1, 4))
            layer(torch.ones(1, 4))
    assert [launch.name for launch in made].count("synapse_step_fwd_kernel") == 8


def test_a_plan_keeps_neither_module_nor_graph(synapse):
    synapse = copy.deepcopy(synapse)
    node = weakref.ref(synapse(torch.ones(1, 4, requires_grad=True)).grad_fn)
    synapse.detach_state()
    synapse(torch.ones(1, 4))
    assert synapse._plans and node() is None
    module = weakref.ref(synapse)
    del synapse
    assert module() is None
