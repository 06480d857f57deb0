"""Synapses of tritonsyn in inferno's connections, layers and trainers, with and without adapter.

What the synapses compute is compared in ``test_parity.py``.
"""

import copy
import pickle

import pytest
import torch
from adapters import build, drive
from synapses import CLASSES, PHYSICS, both, every_kind, make, spikes, uniform
from torch import nn
from torch.testing import assert_close

pytest.importorskip("inferno")
import inferno.functional
from inferno import learn, neural

from tritonsyn.interop.inferno import adapt

THEIRS = {"single": neural.SingleExponentialCurrent, "double": neural.DoubleExponentialCurrent}
X = spikes(12, 2, 3)


def equal(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0)


def constructors(kind):
    """What inferno's connections take as ``synapse``: our class, with an adapter, and theirs."""
    ours, theirs = (
        cls[kind].partialconstructor(*PHYSICS[kind].values()) for cls in (CLASSES, THEIRS)
    )
    return ours, lambda *sizes: adapt(ours(*sizes)), theirs


# -- the adapter ----------------------------------------------------------------------------------


@every_kind
def test_it_is_a_synapse_of_inferno(kind):
    module = make(kind, delay=3.0, batch_size=2)
    adapter = adapt(module)
    for base in (neural.Synapse, neural.InfernoSynapse, inferno.Module):
        assert isinstance(adapter, base)
        assert not isinstance(module, base)
    assert adapter.module is module
    for name in ("shape", "count", "batchsz", "batchedshape", "dt", "delay", "inplace"):
        assert getattr(adapter, name) == getattr(module, name)


@every_kind
def test_it_runs_as_the_module_does(kind):
    module, twin = build(kind), build(kind)
    adapter, x = adapt(module), drive(kind)
    times = uniform(2, 3, 4, high=3.0)
    for step in x:
        equal(adapter(step), twin(step))
    equal(adapter.current, twin.current)
    equal(adapter.spike, twin.spike)
    equal(adapter.current_at(times), twin.current_at(times))
    equal(adapter.spike_at(times), twin.spike_at(times))
    adapter.current_at(times).sum().backward()
    held = dict(adapter.named_parameters())
    assert {name: id(p) for name, p in held.items()} == {
        f"module.{name}": id(p) for name, p in module.named_parameters()
    }
    assert all(parameter.grad.any() for parameter in held.values())
    adapter.spike = ~twin.spike
    equal(module.spike, ~twin.spike)
    adapter.clear(mask=torch.tensor([True, False]))
    assert not adapter.spike[0].any()
    equal(adapter.spike[1], ~twin.spike[1])
    adapter.clear(keep_adaptations=True)
    assert not adapter.current.any()
    with pytest.raises(TypeError, match="unexpected keyword"):
        adapter.clear(other=True)
    with torch.no_grad():
        equal(adapter(x[0, :1]), build(kind)(x[0, :1]))
    assert adapter.batchsz == 1


@every_kind
def test_copies_are_independent_and_states_load(kind):
    adapter = adapt(build(kind))
    with torch.no_grad():
        for step in drive(kind):
            adapter(step)
        loaded = adapt(build(kind))
        loaded.load_state_dict(adapter.state_dict())
        others = [copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter)), loaded]
        x = drive(kind, seed=1)[0]
        expected = adapter(x)
        for other in others:
            equal(other(x), expected)
            equal(other.spike, adapter.spike)
    assert adapter.to(torch.float32).current.dtype == torch.float32
    assert others[0].current.dtype == torch.float64


def test_records_that_are_added_follow_the_synapse():
    """As inferno's mixins add them; ``duration`` after a change is inferno's own, a step longer."""
    adapter = adapt(make("single", (3,), delay=3.0, batch_size=2))
    inferno.RecordTensor.create(adapter, "trace_", 1.0, 0.0, torch.zeros(2, 3))
    adapter.add_delayed("trace_")
    adapter.add_batched("trace_")
    assert adapter.trace_.recordsz == adapter.module.spike_.recordsz == 4
    for step in X:
        adapter(step)
        adapter.trace_.push(adapter.current)
    times = torch.full((2, 3), 2.0)
    trace = adapter.trace_.select(times, inferno.functional.interp_previous)
    equal(trace, adapter.current_at(times))
    adapter.batchsz = 4
    assert adapter.module.batchsz == 4
    assert adapter.trace_.value.shape[1:] == (4, 3)
    adapter(spikes(5, 3))  # the batch follows the input
    assert adapter.batchsz == 5
    assert adapter.trace_.value.shape[1:] == (5, 3)
    adapter.dt = 0.5
    assert adapter.module.dt == adapter.trace_.dt == 0.5
    adapter.delay = 4.0
    assert adapter.module.delay == adapter.delay == 4.0
    assert adapter.trace_.duration == 4.5
    with pytest.raises(RuntimeError, match="no attribute"):
        adapter.add_batched("other_")


def test_records_that_are_added_to_another_batch():
    """The synapse has that of a saved state, or of an input past the adapter."""
    saved = adapt(make("single", batch_size=5)).state_dict()
    loaded, called = adapt(make("single")), adapt(make("single"))
    loaded.load_state_dict(saved)
    called.module(X[0, :1].expand(5, 3))
    for adapter in (loaded, called):
        inferno.RecordTensor.create(adapter, "trace_", 1.0, 0.0, torch.zeros(5, 3))
        adapter.add_batched("trace_")
        adapter.batchsz = 3
        assert adapter.trace_.value.shape[1:] == (3, 3)


def test_what_it_refuses():
    for kind in ("linear", "delay", "conv2d"):
        with pytest.raises(TypeError, match="must be a synapse for inferno"):
            adapt(build(kind))
    for wrong in (nn.Linear(3, 2), None, adapt(make("single"))):
        with pytest.raises(TypeError, match=r"^module must be a synapse, a delayed layer or"):
            adapt(wrong)


# -- inferno's connections and trainers -----------------------------------------------------------


def connection(form, synapse, delay):
    """One of inferno's connections, from nine inputs."""
    torch.manual_seed(0)
    shared = {
        "synapse": synapse, "delay": delay, "batch_size": 2,
        "delay_init": lambda d: inferno.rescale(inferno.uniform(d), 0.0, 3.0),
    }  # fmt: skip
    if form == "dense":
        return neural.LinearDense((3, 3), 4, 1.0, **shared)
    if form == "conv":
        return neural.Conv2D(3, 3, 1, 2, 1.0, 2, **shared)
    return {"direct": neural.LinearDirect, "lateral": neural.LinearLateral}[form](
        (3, 3), 1.0, **shared
    )


@both
@pytest.mark.parametrize("delay", [None, 3.0])
@pytest.mark.parametrize("form", ["dense", "direct", "lateral", "conv"])
def test_in_connections(form, delay, kind):
    ours, adapted, theirs = (connection(form, make, delay) for make in constructors(kind))
    for seed in range(8):
        x = spikes(2, *ours.inshape, seed=seed)
        y = theirs(x)
        for each in (ours, adapted):
            assert_close(each(x), y, rtol=1e-5, atol=1e-5)
            assert_close(each.syncurrent, theirs.syncurrent, rtol=1e-5, atol=1e-5)
            equal(each.synspike, theirs.synspike)
    assert y.any()
    for each in (ours, adapted):
        each.clear()
        assert not each.syncurrent.any()
        each.batchsz, each.dt = 3, 0.5
        assert (each.synapse.batchsz, each.synapse.dt) == (3, 0.5)
        assert each(spikes(3, *ours.inshape)).shape[0] == 3


def neurons(size):
    return neural.LIF(
        size, 1.0, rest_v=-60.0, reset_v=-65.0, thresh_v=-50.0, refrac_t=2.0, time_constant=20.0,
        resistance=5.0, batch_size=2,
    )  # fmt: skip


KERNELS = (inferno.functional.exp_stdp_post_kernel, inferno.functional.exp_stdp_pre_kernel)
TRAINERS = {
    "STDP": (1e-2, -1e-2, 20.0, 20.0),
    "TripletSTDP": (1e-2, 1e-2, -1e-2, -1e-2, 20.0, 40.0, 20.0, 40.0),
    "MSTDP": (1e-2, -1e-2, 20.0, 20.0),
    "MSTDPET": (1e-2, -1e-2, 20.0, 20.0, 30.0),
    "KernelSTDP": (
        *KERNELS,
        {"learning_rate": 1e-2, "time_constant": 20.0},
        {"learning_rate": -1e-2, "time_constant": 20.0},
    ),
    "DelayAdjustedSTDP": (1e-2, -1e-2, 20.0, 20.0),
    "DelayAdjustedSTDPD": (-1e-1, 1e-1, 20.0, 20.0),
    "DelayAdjustedMSTDP": (1e-2, -1e-2, 20.0, 20.0),
}


def trained(synapse, trainer):
    """Weights and delays, before and after some steps of a trained layer, and its spikes."""
    dense = connection("dense", synapse, 3.0)
    dense.weight = inferno.rescale(inferno.uniform(dense.weight), 0.2, 1.0)
    dense.updater = dense.defaultupdater()
    layer = neural.Serial(dense, neurons(4))
    rule = getattr(learn, trainer)(*TRAINERS[trainer])
    rule.register_cell("only", layer.cell)
    before = (dense.weight.detach().clone(), dense.delay.detach().clone())
    fired = []
    for seed in range(30):
        fired.append(layer(spikes(2, 3, 3, seed=seed)))
        rule(*([1.0] if "MSTDP" in trainer else []))  # a reward
        dense.update()
    return before, (dense.weight.detach(), dense.delay.detach()), torch.stack(fired)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_in_trained_layers(trainer):
    """The same spikes, weights and delays as with inferno's own synapse, and not with any."""
    ours, adapted, theirs = (trained(make, trainer) for make in constructors("single"))
    before, after, fired = theirs
    assert fired.any()
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    for _, learned, found in (ours, adapted):
        equal(found, fired)
        assert_close(learned, after, rtol=1e-5, atol=1e-6)
    slower = CLASSES["single"].partialconstructor(10.0, 15.0)
    assert not torch.equal(trained(slower, trainer)[2], fired)


def test_in_a_recurrent_layer():
    """Three connections, of which two feed spikes back."""

    def fired(synapse):
        sizes = ((9, 4), (4, 4), (4, 4))
        torch.manual_seed(0)
        shared = {"synapse": synapse, "delay": 3.0, "batch_size": 2}
        connections = [neural.LinearDense(*size, 1.0, **shared) for size in sizes]
        layer = neural.RecurrentSerial(*connections, neurons(4), neurons(4))
        found = [layer(spikes(2, 9, seed=seed))[0] for seed in range(30)]
        assert all(each.synapse.current.any() for each in connections)
        return torch.stack(found)

    ours, adapted, theirs = map(fired, constructors("single"))
    assert theirs.any()
    equal(ours, theirs)
    equal(adapted, theirs)


# -- what inferno's own tests of its synapses ask -------------------------------------------------


@both
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("delay", [0.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_currents_are_the_recurrence(dtype, delay, inplace, kind):
    """100 steps of random spikes: in float64 to the 1e-7 of inferno's own tests.

    In float32 to 1e-5 of the largest current, and as near to the recurrence in float64 as
    inferno's class is, which is that recurrence.
    """
    physics = {
        "single": {"spike_charge": 25.0, "time_constant": 25.0},
        "double": {"spike_charge": 25.0, "tc_decay": 50.0, "tc_rise": 5.0},
    }[kind]
    options = {**physics, "delay": delay, "inplace": inplace, "batch_size": 4}
    ours = make(kind, (50, 50), 1.2, dtype=dtype, **options)
    theirs, exact = (THEIRS[kind]((50, 50), 1.2, **options) for _ in range(2))
    exact.double()
    errors, largest = [], 0.0
    with torch.no_grad():
        for seed in range(100):
            x = spikes(4, 50, 50, seed=seed, rate=0.1).double()
            current, other, expected = ours(x), theirs(x.float()), exact(x)
            equal(ours.current, current)
            errors.append([(each - expected).abs().max() for each in (current, other)])
            largest = max(largest, expected.max().item())
    error, other = torch.tensor(errors).amax(0).tolist()
    assert other > 1e-7
    assert error <= (1e-7 if dtype == torch.float64 else min(1e-5 * largest, 1.05 * other))


@both
@pytest.mark.parametrize("delay", [0.0, 3.7])
def test_reads_decay_from_the_observation_before(delay, kind):
    """Inside of the record; outside, and without a delay, reads give the overbound value."""
    synapse = make(kind, (4, 5), 1.0, delay=delay, current_overbound=-7.0, dtype=torch.float64)
    currents = [synapse(spikes(1, 4, 5, seed=seed)) for seed in range(9)]
    equal(synapse.current_at(torch.zeros(1, 4, 5)), currents[-1])
    beyond = torch.full((1, 4, 5), delay + 0.5)
    assert (synapse.current_at(beyond) == -7.0).all()
    assert (synapse.current_at(-beyond) == -7.0).all()
    if delay:
        times = uniform(1, 4, 5, low=0.01, high=3.69)
        back = times.ceil().long()
        names = ("pos_current_", "neg_current_") if kind == "double" else ("current_",)
        taus = [value for name, value in PHYSICS[kind].items() if name != "spike_charge"]
        expected = 0.0
        for sign, name, tau in zip((1, -1), names, taus, strict=False):
            past = torch.stack([getattr(synapse, name).read(k + 1) for k in range(5)])
            expected += sign * past.gather(0, back[None])[0] * torch.exp(-(back - times) / tau)
        assert_close(synapse.current_at(times), expected, rtol=0, atol=1e-7)
