"""One test for each row of the table of departures from inferno 0.0.5."""

import copy
import math
import pickle

import pytest
import torch
from synapses import COMPONENTS, RECORDS, every_kind, make, snapshot, spikes, uniform
from torch.utils._python_dispatch import TorchDispatchMode

F64 = torch.float64


def filled(kind, steps=6, **options):
    """A synapse after some steps of random spikes."""
    synapse = make(kind, **options)
    for t in range(steps):
        synapse(spikes(*synapse.batchedshape, seed=t).to(synapse.spike.device))
    return synapse


def records(synapse, kind):
    return [getattr(synapse, name) for name in RECORDS[kind]]


@every_kind
def test_spike_overbound_and_tolerance_mean_what_they_say(kind, each_backend, device):
    synapse = make(
        kind, 4, delay=2.0, interp_tol=0.25, spike_overbound=True, spike_interp_mode="nearest",
        device=device,
    )  # fmt: skip
    x = torch.zeros(1, 4, device=device)
    for t in range(3):
        synapse(torch.ones_like(x) if t == 1 else x)
    # Spike one step ago: within tolerance of it, of the limits, and outside of both.
    sel = torch.tensor([[0.75, 1.25, 2.2, -0.2], [2.3, -0.3, 0.7, 0.4]], device=device)
    expected = [[True, True, False, False], [True, True, True, False]]
    read = torch.cat([synapse.spike_at(row.unsqueeze(0)) for row in sel])
    assert read.tolist() == expected


@every_kind
def test_setting_the_delay_gives_the_constructor_s_record(kind, each_backend, device):
    constructed = make(kind, delay=3.0, device=device)
    changed = make(kind, delay=1.0, device=device)
    changed.delay = 3.0
    beyond = torch.full((1, 3), 3.5, device=device)
    for synapse in (constructed, changed):
        assert [record.recordsz for record in records(synapse, kind)] == [4] * len(
            records(synapse, kind)
        )
        for _ in range(5):
            synapse(torch.ones(1, 3, device=device))
        assert not synapse.current_at(beyond).any() and not synapse.spike_at(beyond).any()


@every_kind
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_are_independent(kind, how, device):
    """A copy, or a state kept in memory, does not follow what is stepped afterwards."""
    synapse = filled(kind, delay=2.0, device=device)
    before = snapshot(synapse)
    match how:
        case "deepcopy":
            kept = copy.deepcopy(synapse)
        case "pickle":
            kept = pickle.loads(pickle.dumps(synapse))
        case "state_dict":
            state = synapse.state_dict()
            kept = None
    for t in range(2):
        synapse(spikes(1, 3, seed=50 + t).to(device))
    state = kept.state_dict() if kept is not None else state
    for key, value in before.items():
        assert torch.equal(state[key], value), key
    assert synapse.spike_.pointer != before["spike_.pointer"]


@every_kind
@pytest.mark.parametrize("depth", [(), (3,)], ids=str)
def test_undelayed_reads_have_the_selector_s_shape(kind, depth, each_backend, device):
    """K = 1: time 0 is the present, all else is overbound, for every shape of the selector."""
    synapse = filled(
        kind, shape=(4, 3), batch_size=2, current_overbound=-7.0, spike_overbound=True,
        device=device,
    )  # fmt: skip
    sel = (uniform(2, 4, 3, *depth, seed=1) < 0.5).float().to(device)  # 0 and 1
    like = (2, 4, 3, *(1 for _ in depth))
    current, spike = synapse.current.view(like), synapse.spike.view(like)
    for times in (sel, sel[:1]):  # of each element of the batch, and shared by all
        read = synapse.current_at(times)
        assert read.shape == sel.shape
        assert torch.equal(read, torch.where(times == 0, current, -7.0))
        assert torch.equal(synapse.spike_at(times), torch.where(times == 0, spike, True))


@every_kind
def test_clear_keeps_no_graph(kind, each_backend, device):
    synapse = make(kind, delay=2.0, device=device)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    assert synapse(x).requires_grad
    synapse.clear()
    assert not any(record.value.requires_grad for record in records(synapse, kind))
    assert not synapse(torch.ones(1, 3, device=device)).requires_grad
    y = synapse(x)
    (dx,) = torch.autograd.grad(y.sum(), x)  # the graph starts after the clear
    (fresh,) = torch.autograd.grad(make(kind, device=device)(x).sum(), x)
    assert torch.equal(dx, fresh)


@every_kind
@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_never_alias_the_record(kind, inplace, each_backend, device):
    synapse = filled(kind, delay=2.0, inplace=inplace, device=device)
    before = snapshot(synapse)
    sel = torch.ones(1, 3, device=device)
    outputs = [synapse.current, synapse.spike, synapse.current_at(sel), synapse.spike_at(sel)]
    for record in records(synapse, kind):
        outputs += [record.peek(), record.read(2), record.latest, record.readrange(3)]
        outputs += [record.select(sel), record.select(1.0)]
    for output in outputs:
        output.fill_(1)
    for key, value in synapse.state_dict().items():
        assert torch.equal(value, before[key]), key
    y = synapse(torch.zeros(1, 3, device=device))
    expected = y.clone()
    y.fill_(99.0)
    assert torch.equal(synapse.current, expected)


@pytest.mark.parametrize("step_time", [0.1, 0.7, 1 / 3])
def test_float32_multiples_of_dt_read_the_observation(step_time, each_backend, device):
    """``k * dt`` means k steps back, up to four units in the last place off, and no further."""
    slots = 21
    synapse = make("single", 1, step_time, delay=(slots - 1) * step_time, device=device)
    newest_first = torch.arange(slots, dtype=torch.float32, device=device) + 1
    synapse.current_.value = newest_first.flip(0).view(slots, 1, 1)
    multiples = torch.arange(slots, dtype=torch.float32) * step_time
    for units in (0, -3, 3):
        sel = moved(multiples, units).view(1, 1, slots).to(device)
        assert torch.equal(synapse.current_at(sel).flatten(), newest_first), units
    # Twelve, because a unit may double on the way: between steps, it is the older one, decayed.
    sel = moved(multiples[:-1], 12).view(1, 1, slots - 1).to(device)
    decayed = newest_first[1:] * math.exp(-step_time / 5.0)
    torch.testing.assert_close(synapse.current_at(sel).flatten(), decayed, rtol=1e-5, atol=0)


def moved(times, units):
    """Times moved by units in the last place, of the larger of themselves and one step."""
    base = times.clamp(min=times[times > 0].min().item())
    there = base.clone()
    for _ in range(abs(units)):
        there = torch.nextafter(there, torch.full_like(there, float("inf") * units))
    return times + (there - base)


@every_kind
@pytest.mark.parametrize("depth", [(), (3,)], ids=str)
def test_batch_of_one_selector_is_broadcast(kind, depth, each_backend, device):
    synapse = filled(kind, shape=(2, 2), batch_size=3, delay=3.0, dtype=F64, device=device)
    sel = uniform(1, 2, 2, *depth, seed=3, high=3.0).to(device).requires_grad_()
    full = sel.detach().repeat(3, *(1 for _ in sel.shape[1:])).requires_grad_()
    shared, each = synapse.current_at(sel), synapse.current_at(full)
    assert shared.shape == (3, 2, 2, *depth)
    assert torch.equal(shared, each)
    assert torch.equal(synapse.spike_at(sel.detach()), synapse.spike_at(full.detach()))
    weights = uniform(*each.shape, seed=4).to(device)
    (d_shared,) = torch.autograd.grad((shared * weights).sum(), sel)
    (d_each,) = torch.autograd.grad((each * weights).sum(), full)
    torch.testing.assert_close(d_shared, d_each.sum(0, keepdim=True), rtol=1e-14, atol=1e-14)


@every_kind
def test_reads_use_the_present_time_constant(kind, each_backend, device):
    synapse = filled(kind, delay=2.0, dtype=F64, device=device)
    sel = torch.full((1, 3), 0.75, dtype=F64, device=device)
    constant = "tc_decay" if kind == "double" else "time_constant"
    older = records(synapse, kind)[0].read(2)
    for tau in (9.0, 30.0):
        setattr(synapse, constant, tau)
        read = synapse.pos_current_at(sel) if kind == "double" else synapse.current_at(sel)
        before = synapse.current_.read(2) + 0.25 / tau * older if kind == "alpha" else older
        expected = before * torch.exp(torch.tensor(-0.25 / tau, dtype=F64))
        torch.testing.assert_close(read, expected, rtol=1e-15, atol=0)


@every_kind
@pytest.mark.parametrize("inplace", [False, True])
def test_assigning_replaces_the_newest_observation(kind, inplace, each_backend, device):
    """No record advances: what was assigned is what the next step decays."""
    synapse = filled(kind, delay=2.0, inplace=inplace, device=device)
    pointers = [record.pointer for record in records(synapse, kind)]
    older = [record.read(2) for record in records(synapse, kind)]
    value = torch.tensor([[1.0, -2.0, 0.0]], device=device)
    for name in COMPONENTS[kind]:
        setattr(synapse, name, value)
        assert torch.equal(getattr(synapse, name), value)
    synapse.spike = value
    assert torch.equal(synapse.spike, value != 0)
    assert [record.pointer for record in records(synapse, kind)] == pointers
    for record, observation in zip(records(synapse, kind), older, strict=True):
        assert torch.equal(record.read(2), observation)
    fed = synapse.rise_.peek() / 3 if kind == "alpha" else 0.0
    y = synapse(torch.zeros(1, 3, device=device))
    if kind == "double":
        with pytest.raises(AttributeError, match="current is pos_current minus neg_current"):
            synapse.current = value
        factor = torch.exp(torch.tensor(-1 / 6)) - torch.exp(torch.tensor(-1 / 2))
    else:
        factor = torch.exp(torch.tensor(-1 / {"single": 5, "alpha": 3}[kind]))
    torch.testing.assert_close(y, (value + fed) * factor.to(device), rtol=1e-6, atol=0)
    assert torch.equal(synapse.current, y)


@every_kind
@pytest.mark.parametrize("offset", [0.0, 1.0, 2.0])
def test_delay_gradient_at_exact_steps(kind, offset, each_backend, device):
    """``value / tau`` of each component, which is the derivative from the left.

    An alpha function rises by ``A / tau`` besides.
    """
    synapse = filled(kind, delay=3.0, dtype=F64, device=device)
    sel = torch.full((1, 3), offset, dtype=F64, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(synapse.current_at(sel).sum(), sel)
    *states, _ = (record.read(1 + int(offset)) for record in records(synapse, kind))
    factors = {"single": (1 / 5,), "double": (1 / 6, -1 / 2), "alpha": (-1 / 3, 1 / 3)}[kind]
    expected = sum(state * factor for state, factor in zip(states, factors, strict=True))
    assert (expected != 0).any()
    torch.testing.assert_close(slope, expected, rtol=1e-14, atol=1e-15)
    if offset > 0:  # at 0 there is nothing newer to take a difference with
        h = 1e-6
        with torch.no_grad():
            left = (synapse.current_at(sel) - synapse.current_at(sel - h)) / h
        torch.testing.assert_close(slope, left, rtol=1e-6, atol=1e-8)


class Saved:
    """Counts the elements that autograd keeps while steps run."""

    def __init__(self):
        self.elements = 0

    def pack(self, tensor):
        self.elements += tensor.numel()
        return tensor


@every_kind
def test_a_write_is_one_slot_with_gradients(kind, each_backend, device):
    """The record stays where it is, and what autograd keeps does not grow with K."""
    kept = []
    for delay in (2.0, 60.0):
        synapse = make(kind, 5, delay=delay, dtype=F64, device=device)
        addresses = [record.value.data_ptr() for record in records(synapse, kind)]
        x = torch.ones(1, 5, dtype=F64, device=device, requires_grad=True)
        sel = torch.full((1, 5), 0.5, dtype=F64, device=device, requires_grad=True)
        saved = Saved()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            total = sum((synapse(x) + synapse.current_at(sel)).sum() for _ in range(4))
        assert [record.value.data_ptr() for record in records(synapse, kind)] == addresses
        assert torch.autograd.grad(total, x)[0].abs().min() > 0
        kept.append(saved.elements)
    assert kept[0] == kept[1] > 0


class Operations(TorchDispatchMode):
    """Writes down every PyTorch operation, and the largest result that is not a view."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.allocated = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.allocated.append(result.numel())
        return result


@every_kind
def test_a_delayed_read_is_one_kernel_and_no_host_read(kind, device):
    """One launch, one allocation of the result, nothing that waits for the device.

    The launch is recorded, not run: the interpreter would read its arguments on the host.
    """
    launcher = pytest.importorskip("tritonsyn.launch.launcher")
    synapse = filled(kind, shape=7, batch_size=2, delay=3.0, device=device)
    synapse.backend = "triton"
    sel = torch.rand(2, 7, 5, device=device) * 3
    with launcher.recording() as launches:
        synapse.current_at(sel)  # once before, so that nothing is left to set up
        launches.clear()
        with Operations() as operations:
            synapse.current_at(sel)
    assert [launch.name for launch in launches] == ["select_fwd_kernel"]
    waits = {"_local_scalar_dense", "item", "nonzero", "equal", "_to_copy", "is_nonzero"}
    assert not waits & set(operations.names), operations.names
    assert sum(operations.allocated) == 2 * 7 * 5, operations.names
