"""State as in any torch module: saved, loaded, copied, converted, and shared with nothing."""

import copy
import gc
import io
import operator
import pickle
import weakref

import pytest
import torch
from synapses import COMPONENTS, PHYSICS, RECORDS, every_kind, make, same, snapshot, spikes, uniform
from torch import nn
from torch.utils.checkpoint import checkpoint

import tritonsyn
from tritonsyn import functional

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def step(synapse, seed):
    """One step on random spikes."""
    return synapse(spikes(*synapse.batchedshape, seed=seed).to(synapse.spike.device))


def filled(kind, steps=5, **options):
    synapse = make(kind, **{"delay": 3.0, "batch_size": 2, **options})
    for t in range(steps):
        step(synapse, t)
    return synapse


def through_file(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: through_file(module, weights_only=False),
}
copies = pytest.mark.parametrize("how", COPIES)


def assert_same_run(a, b, steps=5):
    """Both give the same outputs and reads, bit for bit, and end in the same state."""
    for t in range(steps):
        assert torch.equal(step(a, 100 + t), step(b, 100 + t))
        sel = uniform(*a.batchedshape, 2, seed=t, low=-0.5, high=a.delay + 0.5)
        sel = sel.to(a.spike.device)
        assert torch.equal(a.current_at(sel), b.current_at(sel))
        assert torch.equal(a.spike_at(sel), b.spike_at(sel))
    assert same(snapshot(a), snapshot(b))


def storages(module):
    """Addresses of all storages of the module's tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


# -- state_dict -----------------------------------------------------------------------------------


@every_kind
def test_keys(kind, device):
    """Each record's storage, pointer and times, and the constants; each found by ``getattr``."""
    parts = ("storage", "pointer", "times")
    expected = {f"{name}.{part}" for name in RECORDS[kind] for part in parts} | {*PHYSICS[kind]}
    assert set(make(kind, device=device).state_dict()) == expected
    learned = make(kind, spike_charge=nn.Parameter(torch.tensor(10.0)), device=device)
    assert set(learned.state_dict()) == expected
    fixed = make(kind, spike_charge=torch.ones(3), device=device)
    assert set(fixed.state_dict()) == expected
    half = make(kind, dtype=torch.float16, device=device)
    carries = {f"{name}.carry" for name in RECORDS[kind][:-1]}
    assert set(half.state_dict()) == expected | carries
    for key in half.state_dict():
        assert operator.attrgetter(key)(half) is not None
    assert [name for name, _ in learned.named_parameters()] == ["spike_charge"]
    assert not list(fixed.parameters())


@every_kind
def test_values(kind, device):
    synapse = filled(kind, steps=6, device=device)
    state = synapse.state_dict()
    for name in RECORDS[kind]:
        record = getattr(synapse, name)
        assert torch.equal(state[f"{name}.storage"], record.value)
        assert int(state[f"{name}.pointer"]) == record.pointer == 6 % 4


@every_kind
@pytest.mark.parametrize("inplace", [False, True])
def test_resumed_run_continues_bit_for_bit(kind, inplace, device):
    """Through a file that holds nothing but tensors."""
    synapse = filled(kind, inplace=inplace, device=device)
    state = through_file(synapse.state_dict(), weights_only=True)
    resumed = make(kind, delay=3.0, batch_size=2, inplace=inplace, device=device)
    assert resumed.load_state_dict(state).missing_keys == []
    assert_same_run(synapse, resumed)


@every_kind
def test_state_in_memory_does_not_follow(kind, device):
    synapse = filled(kind, device=device)
    state, before = synapse.state_dict(), snapshot(synapse)
    step(synapse, 9)
    assert same(state, before)
    synapse.load_state_dict(state)
    for value in state.values():
        value.zero_()
    assert same(snapshot(synapse), before)  # nor does the module follow what it loaded


@every_kind
@pytest.mark.parametrize("keep_vars", [False, True])
def test_loading_drops_the_graph(kind, keep_vars, device):
    synapse = make(kind, device=device)
    synapse(torch.ones(1, 3, device=device, requires_grad=True))
    synapse.load_state_dict(synapse.state_dict(keep_vars=keep_vars))
    assert not synapse.current.requires_grad


@every_kind
def test_loading_into_another_dtype_converts(kind, device):
    state = filled(kind, dtype=torch.float64, device=device).state_dict()
    other = make(kind, delay=3.0, batch_size=2, dtype=torch.float32, device=device)
    other.load_state_dict(state)
    name = COMPONENTS[kind][0]
    assert getattr(other, name).dtype == torch.float32
    assert torch.equal(getattr(other, f"{name}_").value, state[f"{name}_.storage"].float())


@every_kind
def test_loading_by_assignment(kind, device):
    """What a module without data needs; nothing is shared with the state all the same."""
    source = filled(kind, dtype=torch.float64, device=device)
    state = source.state_dict()
    target = make(kind, delay=3.0, batch_size=2, device="meta")
    target.load_state_dict(state, assign=True)
    for value in state.values():
        value.zero_()
    assert_same_run(source, target)


@every_kind
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("spike_.typo", torch.ones(1), "Unexpected key.*spike_.typo"),
        ("spike_.storage", torch.ones(4, 2, 3), "spike_.storage of the saved state is torch.float"),
    ],
)
def test_what_no_record_saved_is_refused(kind, device, name, value, message):
    target = make(kind, delay=3.0, batch_size=2, device=device)
    state = {**target.state_dict(), name: value}
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(state)
    current = f"{COMPONENTS[kind][0]}_.storage"
    state = {**target.state_dict(), current: target.state_dict()[current].long()}
    with pytest.raises(RuntimeError, match=r"of the saved state is torch.int64"):
        target.load_state_dict(state)


@every_kind
def test_a_default_device_elsewhere_changes_nothing(kind):
    """Nothing is made on the default device that has to meet what lies on the module's."""
    results = []
    x, sel = torch.rand(110, 2, 3), torch.rand(1, 3, 2) * 3
    for elsewhere in ("cpu", "meta"):
        synapse = make(kind, delay=3.0, batch_size=2, device="cpu")
        with torch.device(elsewhere):
            y = [synapse(x[0]), synapse.scan(x), synapse.scan(functional.pack_spikes(x))]
            y += [synapse.current_at(sel), synapse.scan_at(x, sel)[1], synapse.spike_at(sel)]
            y += functional.exp_scan(x, 0.9)
            synapse.load_state_dict(synapse.state_dict())
        results.append([*y, *synapse.state_dict().values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@every_kind
def test_not_strict_takes_what_is_there(kind, device):
    """A record with half of its state keeps all of its own."""
    source, target = filled(kind, device=device), filled(kind, steps=2, device=device)
    before, state = snapshot(target), source.state_dict()
    del state["spike_.pointer"]
    state["other"] = torch.ones(1)
    result = target.load_state_dict(state, strict=False)
    assert result.missing_keys == ["spike_.pointer"]
    assert result.unexpected_keys == ["other"]
    after = snapshot(target)
    assert torch.equal(after["spike_.storage"], before["spike_.storage"])
    assert torch.equal(after["spike_.pointer"], before["spike_.pointer"])
    name = COMPONENTS[kind][0]
    assert torch.equal(after[f"{name}_.storage"], state[f"{name}_.storage"])


@every_kind
def test_damaged_files(kind):
    file = io.BytesIO()
    torch.save(filled(kind).state_dict(), file)
    whole = file.getvalue()
    target = filled(kind, steps=2)
    before = snapshot(target)
    for damaged in (whole[: len(whole) // 2], b"", whole[100:]):
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            target.load_state_dict(torch.load(io.BytesIO(damaged), weights_only=True))
    assert same(snapshot(target), before)


@every_kind
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spike_.storage", None),
        ("spike_.storage", [1.0]),
        ("spike_.pointer", None),
        ("spike_.pointer", "first"),
        ("spike_.pointer", torch.zeros(2)),
        ("spike_.pointer", torch.tensor(float("nan"))),
    ],
)
def test_damaged_entries(kind, key, value):
    """Values that are no state of a record are refused, and nothing is taken over."""
    target = filled(kind, steps=2)
    before, state = snapshot(target), filled(kind).state_dict()
    state[key] = value
    with pytest.raises((RuntimeError, TypeError, ValueError), match=key.replace(".", r"\.")):
        target.load_state_dict(state)
    assert same(snapshot(target), before)


@every_kind
def test_constants_that_are_tensors_are_state(kind, device):
    source = make(kind, spike_charge=torch.tensor([1.0, 2.0, 3.0]), device=device)
    target = make(kind, spike_charge=torch.ones(3), device=device)
    target.load_state_dict(source.state_dict())
    assert target.spike_charge.tolist() == [1.0, 2.0, 3.0]
    x = torch.ones(1, 3, device=device)
    assert torch.equal(source(x), target(x))


def network(kind, **options):
    synapse = make(kind, **{"delay": 2.0, "batch_size": 2, **options})
    return nn.Sequential(nn.Linear(4, 3), synapse, nn.Linear(3, 2))


@every_kind
def test_inside_a_network(kind):
    """Keys carry the place, states of it load, and a refusal names the place."""
    torch.manual_seed(0)
    net, other = network(kind), network(kind)
    x = uniform(2, 4, seed=1).float()
    with torch.no_grad():
        for _ in range(3):
            net(x)
        assert "1.spike_.pointer" in net.state_dict()
        other.load_state_dict(through_file(net.state_dict(), weights_only=True))
        assert torch.equal(net(x), other(x))
    with pytest.raises(RuntimeError, match=rf"1\.{RECORDS[kind][0]}\.times .*\[1.0, 2.0\]"):
        network(kind, delay=3.0).load_state_dict(net.state_dict())


@every_kind
def test_training_inside_a_network(kind):
    """A step of an optimiser through several time steps, twice, with the state cleared between."""
    torch.manual_seed(0)
    net = network(kind)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in net.parameters()]
    losses = []
    for _ in range(2):
        net[1].clear()
        loss = sum((net(uniform(2, 4, seed=t).float()) - 1.0).square().mean() for t in range(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)


# -- copies ---------------------------------------------------------------------------------------


@every_kind
@copies
@pytest.mark.parametrize("inplace", [False, True])
def test_copy_continues_and_shares_nothing(kind, how, inplace, device):
    synapse = filled(kind, inplace=inplace, device=device)
    twin = COPIES[how](synapse)
    assert type(twin) is type(synapse)
    assert not storages(twin) & storages(synapse)
    before = snapshot(twin)
    step(synapse, 50), step(synapse, 51)
    assert same(snapshot(twin), before)
    step(twin, 50), step(twin, 51)
    assert_same_run(synapse, twin)


@every_kind
@copies
def test_copy_while_a_graph_is_recorded(kind, how, device):
    """The copy holds the values without the graph; the original's backward still works."""
    charge = nn.Parameter(torch.tensor(10.0))
    synapse = make(kind, delay=2.0, spike_charge=charge, device=device)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    synapse(x)
    twin = COPIES[how](synapse)
    assert not storages(twin) & storages(synapse)
    assert same(snapshot(twin), snapshot(synapse))
    assert not any(buffer.requires_grad for buffer in twin.buffers())
    assert isinstance(twin.spike_charge, nn.Parameter) and twin.spike_charge is not charge
    total = synapse(x).sum()
    twin(torch.zeros(1, 3, device=device))
    total.backward()
    assert charge.grad is not None and (x.grad != 0).all()
    assert twin.spike_charge.grad is None


@every_kind
def test_copied_states_are_values(kind, device):
    """Also of a recorded graph: plain tensors."""
    synapse = make(kind, device=device)
    synapse(torch.ones(1, 3, device=device, requires_grad=True))
    state = copy.deepcopy(synapse.state_dict())
    assert not any(value.requires_grad for value in state.values())


@every_kind
@copies
def test_copy_keeps_what_was_given(kind, how):
    options = {"interp_tol": 0.1, "current_overbound": None, "spike_overbound": True}
    synapse = make(
        kind, (2, 2), 0.5, delay=2.0, batch_size=3, inplace=True, spike_interp_mode="nearest",
        dtype=torch.float64, backend="reference", **options,
    )  # fmt: skip
    twin = COPIES[how](synapse)
    for name in ("shape", "dt", "delay", "batchsz", "inplace", "backend", *PHYSICS[kind]):
        assert getattr(twin, name) == getattr(synapse, name)
    assert repr(twin) == repr(synapse)
    assert_same_run(synapse, twin)


# -- conversion -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["to", "method"])
def test_to_dtype(kind, dtype, way, device):
    """Currents are converted, spikes stay bool, the pointer stays, the module runs on."""
    synapse = filled(kind, device=device)
    old = {name: getattr(synapse, f"{name}_").value.clone() for name in COMPONENTS[kind]}
    pointer, spike = synapse.spike_.pointer, synapse.spike_.value.clone()
    if way == "to":
        assert synapse.to(dtype) is synapse
    else:
        method = {torch.float64: "double", torch.float32: "float", torch.float16: "half"}
        getattr(synapse, method.get(dtype, "bfloat16"))()
    for name in COMPONENTS[kind]:
        assert torch.equal(getattr(synapse, f"{name}_").value, old[name].to(dtype))
        assert getattr(synapse, f"{name}_").pointer == pointer
    assert torch.equal(synapse.spike_.value, spike) and synapse.spike_.pointer == pointer
    y = step(synapse, 7)
    assert y.dtype == dtype
    assert synapse.current_at(torch.ones(2, 3, device=device)).dtype == dtype
    synapse.clear()
    synapse.delay = 1.0
    assert step(synapse, 8).dtype == dtype


@every_kind
def test_conversion_makes_the_steps_of_that_dtype(kind, device):
    """A module made in float64 and one converted to it compute the same."""
    made = make(kind, delay=3.0, batch_size=2, dtype=torch.float64, device=device)
    converted = make(kind, delay=3.0, batch_size=2, device=device).double()
    assert_same_run(made, converted)


@every_kind
def test_conversion_in_the_middle_of_a_graph(kind, device):
    """The run goes on in the new dtype, and gradients pass through the conversion."""
    grads = []
    for convert in (torch.nn.Module.double, torch.nn.Module.float):
        synapse = make(kind, device=device)
        x = torch.ones(1, 3, device=device, requires_grad=True)
        synapse(x)
        convert(synapse)
        y = synapse(torch.zeros(1, 3, device=device))
        grads += torch.autograd.grad(y.sum(), x)
    assert grads[0].abs().min() > 0
    torch.testing.assert_close(*grads, rtol=1e-6, atol=0)


@every_kind
def test_to_another_device_and_back(kind):
    """To the device without data: shapes stay, and a fresh state can be loaded after."""
    synapse = filled(kind)
    state = synapse.state_dict()
    moved = copy.deepcopy(synapse).to("meta")
    assert moved.spike_.value.is_meta and moved.spike_.recordsz == 4
    back = moved.to_empty(device="cpu")
    back.load_state_dict(state)
    assert_same_run(synapse, back)


@pytest.mark.gpu
@every_kind
def test_to_the_gpu_and_back(kind):
    synapse = filled(kind)
    moved = copy.deepcopy(synapse).cuda()
    sel = uniform(2, 3, seed=1, high=3.0)
    y = moved.current_at(sel.cuda())
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), synapse.current_at(sel), rtol=1e-5, atol=1e-5)
    back = moved.cpu()
    assert same(snapshot(back), snapshot(synapse))


@every_kind
def test_training_flags_and_iteration(kind):
    """``train``, ``eval``, ``apply``, ``requires_grad_``: nothing special."""
    synapse = make(kind, spike_charge=nn.Parameter(torch.tensor(10.0)))
    seen = []
    synapse.eval().apply(lambda module: seen.append(type(module).__name__))
    assert not synapse.training and not synapse.spike_.training
    assert seen.count("RecordTensor") == len(RECORDS[kind])
    assert not synapse.requires_grad_(False).spike_charge.requires_grad


# -- changes --------------------------------------------------------------------------------------


def at_rest(synapse, kind):
    records = [getattr(synapse, name) for name in RECORDS[kind]]
    return all(not record.value.any() and record.pointer == 0 for record in records)


@every_kind
@pytest.mark.parametrize(
    ("name", "value", "shape"),
    [
        ("batchsz", 5, (4, 5, 3)),
        ("batchsz", 2, (4, 2, 3)),
        ("dt", 0.5, (7, 2, 3)),
        ("dt", 1.0, (4, 2, 3)),
        ("delay", 1.0, (2, 2, 3)),
        ("delay", 0.0, (1, 2, 3)),
        ("delay", 3.0, (4, 2, 3)),
        ("delay", 2.5, (4, 2, 3)),
    ],
)
def test_setters_rebuild_and_clear(kind, name, value, shape, device):
    synapse = filled(kind, dtype=torch.float64, device=device)
    setattr(synapse, name, value)
    assert getattr(synapse, name) == value
    assert at_rest(synapse, kind)
    for record in synapse.children():
        assert tuple(record.value.shape) == shape
        assert record.value.device.type == device.type
        assert (record.dt, record.duration) == (synapse.dt, synapse.delay)
    options = {"step_time": synapse.dt, "delay": synapse.delay, "batch_size": synapse.batchsz}
    assert_same_run(synapse, make(kind, **options, dtype=torch.float64, device=device))


@every_kind
@pytest.mark.parametrize(
    ("delay", "dt", "slots"),
    [
        (0.0, 1.0, 1), (1.0, 1.0, 2), (1.5, 1.0, 3), (0.3, 0.1, 4), (0.7, 0.1, 8), (1.1, 0.1, 12),
        (6.0, 0.3, 21), (1e-9, 1.0, 1), (1.00001, 1.0, 3), (0.5, 1.0, 2),
    ],
)  # fmt: skip
def test_number_of_slots(kind, delay, dt, slots):
    """``ceil(delay / dt) + 1``, a quotient within 1e-6 of an integer taken as that."""
    assert make(kind, step_time=dt, delay=delay).spike_.recordsz == slots


@every_kind
def test_clear_is_the_state_of_a_new_module(kind, device):
    synapse = filled(kind, device=device)
    synapse.clear(keep_adaptations=True)  # other keywords are ignored
    assert at_rest(synapse, kind)
    assert_same_run(synapse, make(kind, delay=3.0, batch_size=2, device=device))


@every_kind
def test_graph_is_freed_by_clear(kind, device):
    """Nothing keeps what an earlier run recorded, such as the inputs of a learned charge."""
    charge = nn.Parameter(torch.tensor(10.0, device=device))
    synapse = make(kind, delay=2.0, spike_charge=charge, device=device)
    x = torch.ones(1, 3, device=device)
    kept = weakref.ref(x)
    synapse(x)
    del x
    gc.collect()
    assert kept() is not None
    synapse.clear()
    gc.collect()
    assert kept() is None


@every_kind
def test_detach_state_truncates(kind, device):
    synapse = make(kind, delay=2.0, device=device)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    y = synapse(x)
    before = snapshot(synapse)
    synapse.detach_state()
    assert same(snapshot(synapse), before)
    z = torch.ones(1, 3, device=device, requires_grad=True)
    total = synapse(z).sum() + synapse.current_at(torch.full((1, 3), 0.5, device=device)).sum()
    dx, dz = torch.autograd.grad(total, (x, z), allow_unused=True)
    assert dx is None and dz is not None
    assert torch.autograd.grad(y.sum(), x)[0] is not None  # what came before is not lost


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the second has carries
def test_nothing_is_written_where_nothing_is_to_be_done(kind, dtype, device):
    synapse = make(kind, delay=2.0, batch_size=2, dtype=dtype, device=device)

    def kept():
        storages = [record.storage for record in synapse.children()]
        return [(id(storage), storage._version) for storage in storages]

    for change in (synapse.clear, synapse.detach_state):
        before = kept()
        change()
        assert kept() == before
        with torch.no_grad():
            synapse(torch.ones(2, 3, device=device))
    synapse.clear()
    assert at_rest(synapse, kind)
    # Zeros, but with a pointer elsewhere, or with a graph.
    for record in synapse.children():
        record.incr()
        if record.storage.is_floating_point():
            record.storage.requires_grad_()
    synapse.clear()
    assert at_rest(synapse, kind)
    assert not any(record.storage.requires_grad for record in synapse.children())


@every_kind
def test_streaming_records_no_graph(kind, device):
    """``inplace=True`` with learned constants and inputs that require gradients."""
    synapse = make(
        kind, delay=2.0, inplace=True, spike_charge=nn.Parameter(torch.tensor(10.0)), device=device
    )
    x = torch.ones(1, 3, device=device, requires_grad=True)
    assert not synapse(x).requires_grad and not synapse.current.requires_grad
    synapse.inplace = False
    assert synapse.inplace is False and synapse(x).requires_grad
    synapse.inplace = True
    assert not synapse(x).requires_grad and not synapse.current.requires_grad


@every_kind
def test_no_grad_records_no_graph(kind, device):
    synapse = make(kind, delay=2.0, device=device)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    synapse(x)
    with torch.no_grad():
        assert not synapse(x).requires_grad
    assert not synapse.current.requires_grad
    with torch.inference_mode():
        assert synapse(x).is_inference()


def use(synapse, name, value):
    """One step and one read; before it whatever ``name`` says."""
    match name:
        case "construct":
            synapse = make(value, delay=2.0, device=synapse.spike.device)
        case "clear":
            synapse.clear()
        case "load":
            synapse.load_state_dict(synapse.state_dict())
        case "align":
            for record in synapse.children():
                record.align(1)
        case "writerange":
            synapse.spike_.writerange(torch.ones(*synapse.batchedshape, 2).to(synapse.spike))
        case "first":
            pass
        case _:
            setattr(synapse, name, value)
    step(synapse, 1)
    synapse.current_at(torch.full(synapse.batchedshape, 0.5, device=synapse.spike.device))
    return synapse


@every_kind
@pytest.mark.parametrize(
    ("name", "value"),
    [("first", 0), ("construct", 0), ("clear", 0), ("load", 0), ("align", 0), ("writerange", 0),
     ("batchsz", 3), ("dt", 0.5), ("delay", 1.0), ("spike_charge", 3.0)],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_after_evaluation(kind, name, value, mode, device):
    """Whatever is done in inference mode, the module can be trained afterwards."""
    synapse = make(kind, delay=2.0, device=device)
    with mode():
        synapse = use(synapse, name, kind if name == "construct" else value)
    x = torch.ones(synapse.batchedshape, device=device, requires_grad=True)
    synapse(x)
    sel = torch.full_like(x, 0.25).requires_grad_()
    total = synapse(x).sum() + synapse.current_at(sel).sum()
    assert all((grad != 0).any() for grad in torch.autograd.grad(total, (x, sel)))


@every_kind
def test_looking_without_grad_keeps_the_graph(kind, device):
    """Reads and saved states under ``no_grad``, between the steps of a training run."""
    grads = []
    for look in (False, True):
        synapse = make(kind, delay=2.0, device=device)
        x = torch.ones(1, 3, device=device, requires_grad=True)
        synapse(x)
        if look:
            with torch.no_grad():
                synapse.current, synapse.state_dict(), copy.deepcopy(synapse)
                assert not synapse.current_at(torch.ones_like(x)).requires_grad
        grads += torch.autograd.grad(synapse(torch.zeros_like(x)).sum(), x)
    assert torch.equal(*grads) and (grads[0] != 0).all()


@every_kind
def test_mutating_what_went_in_changes_nothing(kind, device):
    """Inputs and assigned values are copied."""
    synapse = make(kind, delay=2.0, dtype=torch.float64, device=device)
    x = torch.ones(1, 3, dtype=torch.float64, device=device)
    synapse(x)
    value = torch.full((1, 3), 5.0, dtype=torch.float64, device=device)
    for name in COMPONENTS[kind]:
        setattr(synapse, name, value)
    charge = torch.ones(3)
    synapse.spike_charge = charge
    before = snapshot(synapse)
    x.zero_(), value.zero_(), charge.zero_()
    assert same(snapshot(synapse), before)


@every_kind
def test_gradient_flows_through_an_assigned_value(kind, device):
    """The initial state can be learned."""
    synapse = make(kind, delay=2.0, dtype=torch.float64, device=device)
    initial = torch.ones(1, 3, dtype=torch.float64, device=device, requires_grad=True)
    setattr(synapse, COMPONENTS[kind][0], initial)
    y = synapse(torch.zeros(1, 3, device=device))
    (grad,) = torch.autograd.grad(y.sum(), initial)
    tau = {"single": 5.0, "double": 6.0, "alpha": 3.0}[kind]
    expected = torch.exp(torch.tensor(-1.0 / tau, dtype=torch.float64)).expand(1, 3).to(device)
    torch.testing.assert_close(grad, expected, rtol=1e-15, atol=0)


@every_kind
def test_members(kind, device):
    synapse = make(kind, [2, 3], 0.5, delay=1.0, batch_size=4, device=device)
    assert synapse.shape == (2, 3) and synapse.count == 6 and synapse.batchedshape == (4, 2, 3)
    assert (synapse.batchsz, synapse.dt, synapse.delay) == (4, 0.5, 1.0)
    assert synapse.inplace is False and synapse.backend is None
    assert make(kind, 5).shape == (5,)
    for name, value in PHYSICS[kind].items():
        assert getattr(synapse, name) == value and f"{name}={value}" in repr(synapse)
    assert "(2, 3), step_time=0.5" in repr(synapse)


@every_kind
def test_numbers_of_numpy(kind):
    """They are numbers like any others."""
    np = pytest.importorskip("numpy")
    physics = {name: np.float32(value) for name, value in PHYSICS[kind].items()}
    synapse = make(kind, np.int64(3), np.float64(1.0), **physics, delay=np.int32(2))
    assert repr(synapse) == repr(make(kind, 3, delay=2.0))
    assert_same_run(synapse, make(kind, 3, delay=2.0))


def test_a_step_counts_as_a_write_to_the_spikes(each_backend, device):
    """So that a backward pass that saved them is refused instead of wrong."""
    make_one = tritonsyn.SingleExponentialCurrent
    synapse = make_one(2, 1.0, spike_charge=1.0, time_constant=2.0, device=device)
    for graph in (False, True):
        mask = torch.ones(1, 1, 2, device=device, requires_grad=True)
        y = mask * synapse.spike_.storage
        synapse(torch.ones(1, 2, device=device, requires_grad=graph))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@every_kind
@pytest.mark.parametrize("options", [{"delay": 3.0}, {"step_time": 2.0, "delay": 6.0}], ids=str)
def test_a_state_of_other_times_is_refused(kind, options):
    """Also where the record has as many slots."""
    saved = make(kind, delay=2.5).state_dict()
    synapse = make(kind, **options)
    assert synapse.spike_.recordsz == 4
    with pytest.raises(
        RuntimeError, match=r"step time and delay \[1.0, 2.5\], but this record has"
    ):
        synapse.load_state_dict(saved)
    older = {name: value for name, value in saved.items() if not name.endswith("times")}
    synapse.load_state_dict(older)


# -- batches that come and go ---------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("sequence", [False, True])
def test_the_batch_follows_the_input_at_rest(kind, sequence, device):
    """New, cleared, copied, converted or loaded at rest: as a module made for that batch."""
    synapse = make(kind, delay=2.0, device=device)
    rested = copy.deepcopy(synapse)
    for batch in (4, 2):
        x = spikes(*([3] * sequence), batch, 3, seed=batch).to(device)
        made = make(kind, delay=2.0, batch_size=batch, device=device)
        loaded = make(kind, delay=2.0, device=device)
        loaded.load_state_dict(rested.state_dict())
        converted = copy.deepcopy(rested).double().float()
        expected = made(x)
        for module in (synapse, copy.deepcopy(rested), converted, loaded):
            assert torch.equal(module(x), expected) and module.batchsz == batch
            assert_same_run(module, copy.deepcopy(made))
        record = synapse.spike_
        synapse.clear()
    assert synapse.spike_ is record  # whoever watches it may keep it


@every_kind
def test_another_batch_is_refused_unless_at_rest(kind, device):
    synapse = filled(kind, device=device)
    before = snapshot(synapse)
    for x in (torch.ones(3, 3), torch.ones(2, 3, 3), functional.pack_spikes(torch.ones(2, 3, 3))):
        x = x.to(device) if isinstance(x, torch.Tensor) else x._replace(words=x.words.to(device))
        with pytest.raises(ValueError, match=r"batch of 3, but .* a batch of 2; call clear\(\)"):
            synapse(x)
    captured = make(kind, capturable=True, device=device)
    with pytest.raises(ValueError, match=r"batch of 3, but .* a batch of 1; set batchsz"):
        captured(torch.ones(3, 3, device=device))
    assert same(snapshot(synapse), before)


@every_kind
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options", [{}, {"capturable": True}, {"dtype": torch.float16}], ids=str)
def test_a_state_of_another_batch_is_taken_over(kind, strict, options, device):
    source = filled(kind, batch_size=1, device=device, **options)
    target = filled(kind, batch_size=2, device=device, **options)
    target.load_state_dict(source.state_dict(), strict=strict)
    assert target.batchsz == 1
    assert_same_run(source, target)


@every_kind
def test_a_state_with_batches_of_several_sizes_is_refused(kind, device):
    target, state = filled(kind, device=device), filled(kind, batch_size=3).state_dict()
    before = snapshot(target)
    state["spike_.storage"] = state["spike_.storage"][:, :2]
    with pytest.raises(RuntimeError, match=r"different sizes: \[2, 3\]"):
        target.load_state_dict(state)
    del state["spike_.storage"]
    with pytest.raises(RuntimeError, match=r"different sizes: \[2, 3\]"):
        target.load_state_dict(state, strict=False)
    assert same(snapshot(target), before)


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capturable", [False, True])
def test_clearing_some_samples(kind, dtype, capturable, device):
    """They go on as after ``clear``, and the others as if nothing had been."""
    options = {"dtype": dtype, "capturable": capturable, "device": device}
    synapse = filled(kind, batch_size=3, steps=6, **options)
    mask = torch.tensor([False, True, False], device=device)
    untouched, rested = copy.deepcopy(synapse), copy.deepcopy(synapse)
    rested.clear()
    synapse.clear(mask)
    assert synapse.spike_.pointer == untouched.spike_.pointer
    sel = uniform(3, 3, 2, high=3.0).to(device)
    for t in range(5):
        x = spikes(3, 3, seed=20 + t).to(device)
        rows = zip(
            (synapse(x), synapse.current_at(sel), synapse.spike_at(sel), synapse.current),
            (untouched(x), untouched.current_at(sel), untouched.spike_at(sel), untouched.current),
            (rested(x), rested.current_at(sel), rested.spike_at(sel), rested.current),
            strict=True,
        )
        for mine, others, cleared in rows:
            assert torch.equal(mine[[0, 2]], others[[0, 2]]) and torch.equal(mine[1], cleared[1])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_around_cleared_samples(kind, dtype, device):
    """None to the past of the cleared one; those of the others are unharmed."""
    grads = []
    for clear in (False, True):
        synapse = make(kind, delay=2.0, batch_size=3, dtype=dtype, device=device)
        x = torch.ones(3, 3, device=device, requires_grad=True)
        synapse(x)
        if clear:
            mask = torch.tensor([False, True, False], device=device)
            synapse.clear(mask=mask)
            mask.fill_(True)  # the caller's to change
        y = synapse(x * 0.5) + synapse.current_at(torch.full_like(x, 0.5))
        grads += torch.autograd.grad((y * y).sum(), x)
    assert torch.equal(grads[0][[0, 2]], grads[1][[0, 2]])
    assert (grads[0][1] != grads[1][1]).all()
    fresh = make(kind, delay=2.0, batch_size=3, dtype=dtype, device=device)
    y = fresh(x * 0.5) + fresh.current_at(torch.full_like(x, 0.5))
    assert torch.equal(grads[1][1], torch.autograd.grad((y * y).sum(), x)[0][1])


@every_kind
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2), TypeError, "mask must be a bool tensor, but is torch.float32"),
        ([True, False], TypeError, "mask must be a bool tensor, but is list"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"mask has shape \(3,\), but must have \(2,"),
        (torch.ones(2, 1, dtype=torch.bool), ValueError, r"mask has shape \(2, 1\)"),
    ],
)
def test_wrong_masks(kind, mask, error, message, device):
    synapse = filled(kind, device=device)
    before = snapshot(synapse)
    with pytest.raises(error, match=message):
        synapse.clear(mask.to(device) if isinstance(mask, torch.Tensor) else mask)
    assert same(snapshot(synapse), before)


# -- constants in the state -----------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_of_other_constants_is_refused(kind, nested, device):
    """By name, with both values, before anything changes; not strictly, the module's stay."""
    name, old = list(PHYSICS[kind].items())[-1]
    source = filled(kind, device=device, **{name: old / 2})
    target = filled(kind, steps=2, device=device)
    modules = [nn.Sequential(module) if nested else module for module in (source, target)]
    before = snapshot(target)
    prefix = "0." if nested else ""
    with pytest.raises(RuntimeError, match=f"{prefix}{name} .* is {old / 2}, but .* has {old}"):
        modules[1].load_state_dict(modules[0].state_dict())
    assert same(snapshot(target), before)
    modules[1].load_state_dict(modules[0].state_dict(), strict=False)
    assert getattr(target, name) == old
    loaded, saved = snapshot(target), snapshot(source)
    assert all(torch.equal(loaded[key], saved[key]) for key in loaded if key != name)


@every_kind
def test_tensors_and_numbers_do_not_pass_for_each_other(kind, device):
    name, number = list(PHYSICS[kind].items())[-1]
    plain = filled(kind, device=device)
    fixed = filled(kind, device=device, **{name: torch.full((3,), number)})
    before = snapshot(plain)
    with pytest.raises(RuntimeError, match=rf"{name} .* is \[{number}, .*, but .* has {number}"):
        plain.load_state_dict(fixed.state_dict())
    assert same(snapshot(plain), before)
    with pytest.raises(RuntimeError, match=rf"{name} .* has shape \(\), but .* \(3,\)"):
        fixed.load_state_dict(plain.state_dict())
    learned = filled(kind, device=device, **{name: nn.Parameter(torch.tensor(1.0))})
    learned.load_state_dict(plain.state_dict())
    assert getattr(learned, name).item() == number


@every_kind
def test_states_from_before_constants_were_in_them_load(kind, device):
    source, target = filled(kind, device=device), filled(kind, steps=2, device=device)
    added = (*PHYSICS[kind], "times", "carry")
    old = {k: v for k, v in source.state_dict().items() if k.rpartition(".")[2] not in added}
    assert len(old) == 2 * len(RECORDS[kind])
    assert target.load_state_dict(old).missing_keys == []
    assert_same_run(source, target)


@every_kind
@pytest.mark.parametrize("nested", [False, True])
def test_a_strict_load_that_fails_takes_nothing(kind, nested, device):
    source, target = filled(kind, device=device), filled(kind, steps=2, device=device)
    modules = [nn.Sequential(module) if nested else module for module in (source, target)]
    before = snapshot(target)
    for change in ("without", "with"):
        state = modules[0].state_dict()
        key = next(key for key in state if key.endswith("spike_.pointer"))
        if change == "without":
            del state[key]
        else:
            state[f"{key}s"] = state[key]
        with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key\(s\) .*spike_\.pointer"):
            modules[1].load_state_dict(state)
        assert same(snapshot(target), before)


@every_kind
@pytest.mark.parametrize("part", ["storage", "times"])
@pytest.mark.parametrize("damage", ["a list", "sparse", "meta"])
def test_states_of_odd_tensors_are_refused(kind, part, damage, device):
    target, state = filled(kind, steps=2, device=device), filled(kind, device=device).state_dict()
    before, key = snapshot(target), f"{RECORDS[kind][0]}.{part}"
    ways = {
        "a list": lambda t: [1.0],
        "sparse": lambda t: t.to_sparse(),
        "meta": lambda t: t.to("meta"),
    }
    state[key] = ways[damage](state[key])
    with pytest.raises(RuntimeError, match=rf"{key} of the saved state is (not a dense|on meta)"):
        target.load_state_dict(state)
    assert same(snapshot(target), before)


# -- what walks over modules ----------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("capturable", [False, True])
def test_records_are_buffers_only_where_graphs_need_it(kind, capturable, device):
    synapse = make(kind, capturable=capturable, device=device)
    names = {name for name, _ in synapse.named_buffers()}
    wanted = {f"{name}.{part}" for name in RECORDS[kind] for part in ("storage", "position")}
    assert names == (wanted | {"arrivals"} if capturable else set())


@every_kind
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    ("shape", "layout"), [((4, 5), torch.channels_last), ((2, 4, 5), torch.channels_last_3d)]
)
def test_memory_formats_leave_the_records(kind, capturable, shape, layout, device):
    synapse = filled(kind, shape=shape, capturable=capturable, device=device)
    twin = copy.deepcopy(synapse).to(memory_format=layout)
    assert twin.spike_.value.is_contiguous() and same(snapshot(twin), snapshot(synapse))
    assert_same_run(synapse, twin)


@every_kind
@pytest.mark.parametrize("capturable", [False, True])
def test_type_leaves_spikes_and_pointers(kind, capturable, device):
    synapse = filled(kind, capturable=capturable, device=device)
    made = copy.deepcopy(synapse).double()
    synapse.type(torch.float64)
    assert same(snapshot(synapse), snapshot(made))
    with pytest.raises(TypeError, match=r"dtype must be one of .* but is torch.int32"):
        synapse.type(torch.int32)
    assert_same_run(synapse, made)


@every_kind
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "to"])
def test_copies_made_in_inference_mode_can_train(kind, how, device):
    synapse = filled(kind, device=device)
    with torch.inference_mode():
        copied = COPIES[how](synapse) if how in COPIES else copy.deepcopy(synapse).to(torch.float64)
    x = torch.ones(2, 3, device=device, requires_grad=True)
    copied(x)
    (grad,) = torch.autograd.grad(copied(x).sum(), x)
    assert (grad != 0).all()


@every_kind
def test_a_conversion_to_half_carries_what_it_rounds(kind, device):
    """A step afterwards starts from the value before the conversion."""
    synapse = filled(kind, device=device)
    half = copy.deepcopy(synapse).bfloat16()
    saved = make(kind, delay=3.0, batch_size=2, dtype=torch.bfloat16, device=device)
    saved.load_state_dict(synapse.state_dict())
    for name in RECORDS[kind][:-1]:
        newest = getattr(synapse, name).peek()
        assert torch.equal(getattr(half, name).carry, newest)
        assert torch.equal(getattr(saved, name).carry, newest)
    half.double()
    assert all(record.carry is None for record in half.children())


def test_copies_for_one_call_are_refused():
    """DataParallel would write to copies that it drops."""
    synapse = make("single")
    with pytest.raises(RuntimeError, match=r"use torch.nn.parallel.Distrib"):
        synapse._replicate_for_data_parallel()


# -- kinds of fault that hid behind others --------------------------------------------------------


@every_kind
def test_a_refused_load_leaves_the_whole_net(kind):
    """The first module fits, and the second does not."""
    net = nn.Sequential(*(filled(kind) for _ in range(2)))
    before = snapshot(net)
    state = {key: value + (value.dtype != torch.bool) for key, value in before.items()}
    state |= {key: value for key, value in before.items() if not key.endswith("storage")}
    state["1.spike_.pointer"] = torch.tensor(9)
    with pytest.raises(RuntimeError, match=r"1\.spike_\.pointer of the saved state is 9"):
        net.load_state_dict(state)
    assert same(snapshot(net), before)


@every_kind
def test_a_state_for_a_capturable_module_on_meta_is_refused(kind):
    source = filled(kind, capturable=True)
    target = make(kind, delay=3.0, batch_size=2, capturable=True, device="meta")
    with pytest.raises(RuntimeError, match=r"on meta; call to_empty\(\) first"):
        target.load_state_dict(source.state_dict(), assign=True)
    target.to_empty(device="cpu")
    target.load_state_dict(source.state_dict())
    assert_same_run(source, target)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rest_is_filled_in_where_memory_has_no_values(kind, dtype, device):
    """As by ``to_empty``, for which a function that fills with ones stands."""
    synapse = make(kind, delay=2.0, dtype=dtype, device=device)
    synapse._apply(torch.ones_like)
    x = spikes(1, 3, seed=1).to(device)
    assert torch.equal(synapse(x), make(kind, delay=2.0, dtype=dtype, device=device)(x))


@every_kind
@pytest.mark.parametrize("how", ["convert", "load"])
def test_a_conversion_from_half_keeps_what_was_carried(kind, how, device):
    half = filled(kind, dtype=torch.bfloat16, device=device)
    carried = {name: getattr(half, name).carry.clone() for name in RECORDS[kind][:-1]}
    single = copy.deepcopy(half).float()
    if how == "load":
        single = make(kind, delay=3.0, batch_size=2, device=device)
        single.load_state_dict(half.state_dict())
    for name, value in carried.items():
        assert torch.equal(getattr(single, name).peek(), value)
        assert torch.equal(getattr(single, name).read(2), getattr(half, name).read(2).float())


@every_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
        (lambda t: t[:, :0], "has a batch of 0"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_records_that_no_record_holds_are_refused(kind, change, message, assign):
    target, state = filled(kind, steps=2), filled(kind).state_dict()
    before, key = snapshot(target), f"{RECORDS[kind][0]}.storage"
    state[key] = change(state[key])
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(state, assign=assign)
    assert same(snapshot(target), before)


@every_kind
def test_numbers_are_compared_as_the_state_holds_them(kind):
    name = list(PHYSICS[kind])[-1]
    learned = make(kind, **{name: nn.Parameter(torch.tensor(1.1))})
    fixed = make(kind, **{name: 1.1})
    fixed.load_state_dict(learned.state_dict())
    state = learned.state_dict()
    for odd in (state[name].to("meta"), state[name].to_sparse(), state[name].expand(3)):
        with pytest.raises(RuntimeError, match=rf"{name} of the saved state is .*, but .* has 1.1"):
            fixed.load_state_dict({**state, name: odd})


@every_kind
def test_masks_leave_rest_as_it_is(kind, device):
    synapse = make(kind, batch_size=2, device=device)
    synapse.clear(torch.tensor([True, False], device=device))
    assert synapse(torch.ones(5, 3, device=device)).shape == (5, 3)


@pytest.mark.parametrize("offset", [1, torch.ones(2, 3, dtype=torch.int64)], ids=["one", "each"])
def test_a_range_is_written_in_place_where_a_graph_may_hold_the_address(offset, device):
    record = make("single", delay=3.0, batch_size=2, capturable=True, device=device).current_
    address = record.value.data_ptr()
    offset = offset.to(device) if isinstance(offset, torch.Tensor) else offset
    record.writerange(torch.ones(2, 3, 2, device=device), offset)
    assert record.value.data_ptr() == address and record.readrange(2, offset).eq(1).all()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_checkpoint_repeats_is_refused_whatever_it_is(kind, dtype):
    """Reads, writes and settings, which backward would repeat on the state of then."""
    calls = {
        "current": lambda s: s.current,
        "value": lambda s: s.spike_.value.float(),
        "align": lambda s: s.spike_.align(1),
        "batchsz": lambda s: setattr(s, "batchsz", 1),
        "clear": lambda s: s.clear(),
        "write": lambda s: setattr(s, "spike", torch.ones(2, 3)),
    }
    for call in calls.values():
        synapse = filled(kind, dtype=dtype)
        w = torch.ones((), requires_grad=True)
        ran = []

        def repeated(w, call=call, synapse=synapse, ran=ran):
            ran.append(call(synapse))
            return (w * w).exp() if ran[-1] is None else (ran[-1] * w).sum()

        y = checkpoint(repeated, w, use_reentrant=False)
        before = snapshot(synapse)
        with pytest.raises(RuntimeError, match="called in a backward pass"):
            y.backward()
        assert same(snapshot(synapse), before)


@every_kind
def test_hooks_of_other_modules_may_change_keys(kind):
    """Also after the first module has been loaded."""
    net = nn.Sequential(filled(kind), nn.Sequential(filled(kind, steps=2)))
    state = {key.replace("1.0.", "1.old."): value for key, value in net.state_dict().items()}

    def rename(module, state_dict, prefix, *args):
        for key in [key for key in state_dict if key.startswith(f"{prefix}old.")]:
            state_dict[key.replace(f"{prefix}old.", f"{prefix}0.")] = state_dict.pop(key)

    net[1].register_load_state_dict_pre_hook(rename)
    before = snapshot(net)
    net[0](torch.ones(2, 3)), net[1](torch.ones(2, 3))
    net.load_state_dict(state)
    assert same(snapshot(net), before)
