"""Sequence scans: against filters, stepping and every split; gradients; edges of the tiles."""

import pytest
import torch
from scipy.signal import lfilter
from synapses import every_kind, gradcheck, make, same, snapshot, spikes
from torch import nn

from tritonsyn import AlphaCurrent, DoubleExponentialCurrent, SingleExponentialCurrent, functional
from tritonsyn.backend import BackendError
from tritonsyn.launch.config import LaunchConfig, override_config

F64 = torch.float64
ROW = (2, 3)
GROUPS = [
    (SingleExponentialCurrent, {"spike_charge": 2.0, "time_constant": 5.0}),
    (DoubleExponentialCurrent, {"spike_charge": 2.0, "tc_decay": 7.0, "tc_rise": 2.0}),
    (AlphaCurrent, {"spike_charge": 2.0, "time_constant": 3.0}),
]
KINDS = pytest.mark.parametrize(("cls", "constants"), GROUPS, ids=["single", "double", "alpha"])


def filtered(x, decay, gain):
    """The recurrence ``y[t] = decay * y[t-1] + gain * x[t]`` by scipy."""
    return torch.from_numpy(lfilter([gain], [1.0, -decay], x.cpu().numpy(), axis=0)).to(x.device)


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_single_scan_equals_a_filter(device, backend, steps):
    x = torch.rand(steps, *ROW, dtype=F64, device=device)
    y, final = functional.exp_scan(x, 0.8, 0.3, backend=backend)
    torch.testing.assert_close(y, filtered(x, 0.8, 0.3), rtol=1e-12, atol=1e-12)
    expected = y[-1] if steps else torch.zeros_like(final)
    assert torch.equal(final, expected)


def test_double_scan_equals_two_filters(device, backend):
    x = torch.rand(9, *ROW, dtype=F64, device=device)
    y, (pos, neg) = functional.double_exp_scan(x, 0.9, 0.6, 0.5, backend=backend)
    expected = [filtered(x, decay, 0.5) for decay in (0.9, 0.6)]
    torch.testing.assert_close(y, expected[0] - expected[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pos, expected[0][-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(neg, expected[1][-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("split", [0, 1, 4, 9])
def test_a_split_sequence_that_carries_its_state_changes_nothing(device, backend, split):
    x = torch.rand(9, *ROW, device=device)
    whole, final = functional.exp_scan(x, 0.8, 0.3, backend=backend)
    first, carried = functional.exp_scan(x[:split], 0.8, 0.3, backend=backend)
    second, last = functional.exp_scan(x[split:], 0.8, 0.3, carried, backend=backend)
    torch.testing.assert_close(torch.cat((first, second)), whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(last, final, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, F64])
def test_every_kind_of_input_counts_the_same(device, backend, dtype):
    x = torch.randint(0, 2, (5, *ROW), device=device)
    expected, _ = functional.exp_scan(x.to(F64), 0.8, 0.3, dtype=torch.float32, backend=backend)
    y, _ = functional.exp_scan(x.to(dtype), 0.8, 0.3, dtype=torch.float32, backend=backend)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("synapses", [1, 31, 32, 33, 70])
def test_packed_spikes_are_the_spikes(device, backend, synapses):
    x = torch.rand(3, 2, synapses, device=device) < 0.5
    packed = functional.pack_spikes(x, backend=backend)
    assert packed.words.shape == (3, 2, -(-synapses // 32))
    assert torch.equal(functional.unpack_spikes(packed), x)
    y, _ = functional.exp_scan(x, 0.8, 0.3, backend=backend)
    assert torch.equal(functional.exp_scan(packed, 0.8, 0.3, backend=backend)[0], y)


@pytest.mark.parametrize("per_synapse", [False, True])
def test_gradients_of_the_scans(device, each_backend, per_synapse):
    shape = (2,) if per_synapse else ()
    x, pos, neg = (torch.rand(s, dtype=F64, device=device) for s in [(3, 1, 2), (1, 2), (1, 2)])
    decay, rise, gain = (torch.rand(shape, dtype=F64, device=device) for _ in range(3))
    arguments = [v.requires_grad_() for v in (x, decay, rise, gain, pos, neg)]

    def double(x, decay, rise, gain, pos, neg):
        y, finals = functional.double_exp_scan(x, decay, rise, gain, (pos, neg))
        return y, *finals

    assert gradcheck(double, arguments)
    x, decay, _, gain, pos, _ = arguments
    assert gradcheck(functional.exp_scan, (x, decay, gain, pos))


def test_coefficients_of_leading_axes_are_refused_and_of_last_axes_broadcast(device, backend):
    x = torch.rand(4, 2, 3, 5, dtype=F64, device=device)
    decay = torch.rand(3, 1, dtype=F64, device=device)
    y, _ = functional.exp_scan(x, decay, backend=backend)
    rows = [filtered(x[:, :, i], decay[i].item(), 1.0) for i in range(3)]
    torch.testing.assert_close(y, torch.stack(rows, 2), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"decay has shape \(7,\)"):
        functional.exp_scan(x, torch.rand(7, device=device), backend=backend)
    with pytest.raises(ValueError, match=r"initial state has shape \(3,\)"):
        functional.exp_scan(x, 0.5, initial=torch.rand(3, device=device), backend=backend)


@pytest.mark.parametrize(
    "config",
    [
        LaunchConfig(32, 1, 4, 1),
        LaunchConfig(32, 1, 3, 2),
        LaunchConfig(32, 1, 2, 5),
        LaunchConfig(64, 1, 8, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [11, 12])
def test_kernel_at_the_edges_of_tiles_and_chunks(device, config, steps):
    def run(backend):
        torch.manual_seed(1)
        x = torch.rand(steps, 2, 19, dtype=F64, device=device, requires_grad=True)
        learned = [torch.rand(19, dtype=F64, device=device, requires_grad=True) for _ in range(3)]
        initial = [torch.rand(2, 19, dtype=F64, device=device, requires_grad=True) for _ in "pn"]
        y, finals = functional.double_exp_scan(x, *learned, tuple(initial), backend=backend)
        ((y * torch.rand_like(y)).sum() + (finals[0] * finals[1]).sum()).backward()
        return [y, *finals, x.grad, *(v.grad for v in learned), *(v.grad for v in initial)]

    expected = run("reference")
    with override_config(config):
        actual = run("triton")
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [(), (3,)], ids=["shared", "per synapse"])
@pytest.mark.parametrize("steps", [99, 100, 103, 109])
def test_steps_taken_in_blocks_give_what_a_loop_gives(device, steps, size):
    """On a CPU 100 and more small steps are cut into blocks, with a rest or without."""
    torch.manual_seed(1)
    x = torch.rand(steps, *ROW, dtype=F64, device=device, requires_grad=True)
    decay = (0.5 + 0.4 * torch.rand(size, dtype=F64, device=device)).requires_grad_()
    initial = torch.rand(ROW, dtype=F64, device=device, requires_grad=True)
    y, final = functional.exp_scan(x, decay, 0.3, initial, backend="reference")
    current, looped = initial, []
    for row in x:
        current = decay * current + 0.3 * row
        looped.append(current)
    expected = torch.stack(looped)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    weight, leaves = torch.rand_like(y), [x, decay, initial]
    actual = torch.autograd.grad((y * weight).sum() + final.sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum() + current.sum(), leaves)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [1e4, 2.0, 1.0, -0.9, -1.0])
def test_steps_beyond_what_blocks_can_hold_give_what_a_loop_gives(device, decay):
    """The power of a block, or its sum, would overflow where the sequence itself does not."""
    x = torch.zeros(110, 1, 2, device=device)
    x[-9:, 0, 0] = 1.0
    if decay == 1.0:
        x[1::2, 0, 1], x[2::2, 0, 1] = 3e38, -3e38
        x[-1] = 0.0
    y, final = functional.exp_scan(x, decay, backend="reference")
    current, looped = torch.zeros(1, 2, device=device), []
    for row in x:
        current = decay * current + row
        looped.append(current)
    torch.testing.assert_close(y, torch.stack(looped))
    assert torch.equal(final, y[-1])
    assert y.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 5), (4, 0, 5), (4, 2, 0)])
def test_packed_spikes_of_nothing(device, each_backend, shape):
    packed = functional.pack_spikes(torch.zeros(shape, dtype=torch.bool, device=device))
    assert functional.unpack_spikes(packed).shape == shape
    gain = torch.ones((), device=device, requires_grad=True)
    y, final = functional.exp_scan(packed, 0.5, gain)
    assert y.shape == shape
    assert final.shape == shape[1:]
    (y.sum() + final.sum()).backward()
    assert gain.grad.item() == 0.0


def test_coefficients_that_differ_along_the_batch(device, each_backend):
    x = torch.rand(5, 2, 40, device=device) < 0.5
    decay = torch.tensor([[0.5], [0.9]], device=device)
    expected, _ = functional.exp_scan(x, decay)
    actual, _ = functional.exp_scan(functional.pack_spikes(x), decay)
    assert torch.equal(actual, expected)
    for row in range(2):
        torch.testing.assert_close(
            expected[:, row], functional.exp_scan(x[:, row], decay[row].item())[0]
        )


def test_the_final_state_shares_nothing_with_the_initial_one(device, each_backend):
    initial = torch.ones(2, 3, device=device)
    _, final = functional.exp_scan(torch.ones(0, 2, 3, device=device), 0.5, 1.0, initial)
    final.zero_()
    assert initial.all()


def test_the_input_gradient_keeps_nothing_of_the_size_of_the_sequence(device):
    x = torch.rand(64, *ROW, device=device, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        functional.double_exp_scan(x, 0.9, 0.5, 2.0, backend="reference")
    assert max(kept) < x[0].numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error_is_that_of_its_rounding(device, dtype):
    x = torch.rand(400, 4, 8, device=device).to(dtype)
    exact = filtered(x.to(F64), 0.95, 0.1)
    y, _ = functional.exp_scan(x, 0.95, 0.1)
    plain = torch.zeros_like(x[0])
    stepped = []
    for row in x:
        plain = plain * 0.95 + row * 0.1
        stepped.append(plain)
    error = (y.to(F64) - exact).abs().max()
    assert y.dtype == dtype
    assert error <= 2 * (torch.stack(stepped).to(F64) - exact).abs().max()
    assert error <= torch.finfo(dtype).eps / 2 * exact.abs().max()


def test_a_million_steps_stay_within_the_error_bound_of_float32(device):
    steps, decay, gain = 1_000_000, 0.98, 0.3
    x = torch.ones(steps, 1, 1, device=device)
    y, _ = functional.exp_scan(x, decay, gain)
    time = torch.arange(1, steps + 1, dtype=F64, device=device).view(-1, 1, 1)
    # The recurrence runs with decay and gain as float32 knows them. Each step rounds twice, and an
    # error decays as the current does: at most 2 * eps / (1 - decay) of the current in all.
    d, g = (torch.tensor(v).to(F64) for v in (decay, gain))
    exact = g * (1 - d**time) / (1 - d)
    bound = 2 * torch.finfo(torch.float32).eps / (1 - decay)
    assert ((y.to(F64) - exact).abs() / exact).max() <= bound


@KINDS
@pytest.mark.parametrize("delay", [0.0, 3.9, 20.0])
@pytest.mark.parametrize("pieces", [[7], [2, 5], [1, 0, 6], [3, 1, 3]], ids=str)
def test_module_scan_leaves_what_stepping_leaves(device, cls, constants, delay, pieces):
    def module():
        return cls(3, 1.3, delay=delay, batch_size=2, dtype=F64, device=device, **constants)

    x = torch.rand(7, *ROW, dtype=F64, device=device)
    x[x < 0.3] = 0
    stepped, scanned = module(), module()
    expected = torch.stack([stepped(row) for row in x])
    parts = torch.split(x, pieces)
    actual = torch.cat([scanned.scan(part) for part in parts])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    for name, value in stepped.state_dict().items():
        torch.testing.assert_close(scanned.state_dict()[name], value, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(scanned.current, stepped.current, rtol=1e-12, atol=1e-13)


def learned(cls, device):
    """A synapse with constants that learn, one per synapse and one for the group."""
    torch.manual_seed(3)
    charge = torch.nn.Parameter(torch.tensor(2.0, dtype=F64, device=device))
    slow = torch.nn.Parameter(torch.rand(3, dtype=F64, device=device) + 6.0)
    constants = {"spike_charge": charge}
    if cls is DoubleExponentialCurrent:
        constants |= {"tc_decay": slow, "tc_rise": 2.0}
    else:
        constants["time_constant"] = slow
    return cls(3, 1.3, delay=3.9, batch_size=2, dtype=F64, device=device, **constants)


@KINDS
@pytest.mark.parametrize("pieces", [[7], [1, 4, 0, 2]], ids=str)
def test_gradients_pass_from_scan_to_scan_and_through_delayed_reads(device, cls, constants, pieces):
    def run(scan):
        synapse = learned(cls, device)
        torch.manual_seed(4)
        x = torch.rand(7, *ROW, dtype=F64, device=device, requires_grad=True)
        sel = (torch.rand(1, 3, 2, dtype=F64, device=device) * 3.9).requires_grad_()
        weights = torch.rand(7, *ROW, dtype=F64, device=device)
        delayed_weights = torch.rand(7, *ROW, 2, dtype=F64, device=device)
        currents, delayed = [], []
        for part in torch.split(x, pieces):
            if scan:
                y, read = synapse.scan_at(part, sel)
                currents.append(y)
                delayed.append(read)
            else:
                for row in part:
                    currents.append(synapse(row).unsqueeze(0))
                    delayed.append(synapse.current_at(sel).unsqueeze(0))
        loss = (torch.cat(currents) * weights).sum() + (torch.cat(delayed) * delayed_weights).sum()
        (loss + (synapse.current_at(sel) ** 2).sum()).backward()
        return [*currents, *delayed], [x.grad, sel.grad, *(p.grad for p in synapse.parameters())]

    (stepped, expected), (scanned, actual) = run(scan=False), run(scan=True)
    torch.testing.assert_close(torch.cat(scanned[: len(pieces)]), torch.cat(stepped[:7]))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_of_a_transposed_use(device, backend):
    synapse = learned(SingleExponentialCurrent, device)
    synapse.backend = backend
    sel = torch.rand(1, 3, 2, dtype=F64, device=device, requires_grad=True)
    weight = torch.rand(2, 3, dtype=F64, device=device)
    x = torch.rand(3, *ROW, dtype=F64, device=device)
    _, delayed = synapse.scan_at(x, sel)
    torch.einsum("tbio,oi->tbo", delayed, weight).sum().backward()
    synapse.clear()
    stepped = []
    for row in x:
        synapse(row)
        stepped.append(synapse.current_at(sel.detach()))
    slope = torch.stack(stepped) / synapse.time_constant.unsqueeze(-1)
    torch.testing.assert_close(sel.grad, (slope * weight.T).sum((0, 1)).unsqueeze(0))


@KINDS
def test_steps_and_scans_mix(device, cls, constants):
    def run(mixed):
        synapse = learned(cls, device)
        torch.manual_seed(5)
        x = torch.rand(8, *ROW, dtype=F64, device=device, requires_grad=True)
        if mixed:
            y = [synapse.scan(x[:3]), synapse(x[3])[None], synapse(x[4])[None], synapse.scan(x[5:])]
        else:
            y = [synapse(row)[None] for row in x]
        (torch.cat(y) ** 2).sum().backward()
        return [torch.cat(y), x.grad, *(p.grad for p in synapse.parameters())]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@KINDS
def test_packed_input_and_streaming(device, cls, constants):
    x = torch.rand(6, 2, 40, device=device) < 0.3
    options = {"delay": 2.0, "batch_size": 2, "device": device, **constants}
    plain, packed = cls(40, 1.0, **options), cls(40, 1.0, inplace=True, **options)
    assert torch.equal(packed.scan(functional.pack_spikes(x)), plain.scan(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[name], value)
    graded = x.float().requires_grad_()
    assert not packed.scan(graded).requires_grad
    assert plain.scan(graded).requires_grad


def test_an_empty_sequence_has_the_graph_of_any_other(device, each_backend):
    tau = torch.nn.Parameter(torch.tensor(5.0, device=device))
    synapse = SingleExponentialCurrent(
        3, 1.0, spike_charge=1.0, time_constant=tau, delay=2.0, device=device
    )
    synapse(torch.ones(1, 3, device=device))
    y = synapse.scan(torch.zeros(0, 1, 3, device=device))
    assert synapse.spike_.pointer == 1
    y.sum().backward()
    assert tau.grad.item() == 0.0


@KINDS
@pytest.mark.parametrize("steps", [0, 2, 9])
def test_advancing_leaves_what_a_scan_leaves(device, each_backend, cls, constants, steps):
    """State and gradients; without the currents in between."""

    def run(advance):
        torch.manual_seed(2)
        synapse = learned(cls, device)
        x = torch.rand(steps, *ROW, dtype=F64, device=device, requires_grad=True)
        synapse(torch.rand(ROW, dtype=F64, device=device))
        (synapse.advance if advance else synapse.scan)(x)
        read = synapse.current_at(torch.full((1, 3), 2.0, dtype=F64, device=device))
        read.square().sum().backward()
        gradients = [x.grad if steps else x, *(p.grad for p in synapse.parameters())]
        return [*synapse.state_dict().values(), *gradients]

    torch.testing.assert_close(run(advance=True), run(advance=False))


@pytest.mark.parametrize("record", ["current_", "spike_"])
def test_a_sequence_may_be_a_record_that_the_scan_writes(device, each_backend, record):
    def run(copied):
        synapse = SingleExponentialCurrent(
            3, 1.0, spike_charge=2.0, time_constant=4.0, delay=8.0, batch_size=2, device=device
        )
        with torch.no_grad():
            synapse.scan(
                torch.rand(11, *ROW, generator=torch.Generator().manual_seed(1)).to(device)
            )
            x = getattr(synapse, record).value
            return synapse.scan(x.clone() if copied else x), *synapse.state_dict().values()

    torch.testing.assert_close(run(copied=False), run(copied=True))


@KINDS
def test_a_refused_sequence_changes_nothing(device, cls, constants):
    synapse = cls(3, 1.0, delay=2.0, batch_size=2, device=device, **constants)
    synapse.scan(torch.rand(4, *ROW, device=device))
    before = synapse.state_dict()
    for bad in (torch.rand(4, 3, 2), torch.rand(3), torch.rand(4, *ROW, dtype=torch.cfloat), 3.0):
        bad = bad.to(device) if isinstance(bad, torch.Tensor) else bad
        with pytest.raises((ValueError, TypeError)):
            synapse.scan(bad)
    for name, value in synapse.state_dict().items():
        assert torch.equal(value, before[name])


def test_truncation_and_clearing_cut_the_graph(device):
    synapse = learned(SingleExponentialCurrent, device)
    x = torch.rand(3, *ROW, dtype=F64, device=device, requires_grad=True)
    synapse.scan(x)
    synapse.detach_state()
    later = synapse.scan(torch.rand(3, *ROW, dtype=F64, device=device))
    later.sum().backward()
    assert x.grad is None
    synapse.clear()
    assert not synapse.current_.value.requires_grad
    assert not synapse.current_.value.any()


@pytest.mark.parametrize("decay", [0.5, 1e-30, 1.0, -0.5, -1e-30])
@pytest.mark.parametrize(("backend", "steps"), [("triton", 12), ("reference", 110)])
def test_chunks_pass_on_what_is_infinite(device, backend, steps, decay):
    """A chunk's own decay may underflow, and zero times infinity is not a number."""
    x = torch.zeros(steps, 1, 3, device=device)
    x[0, 0, 1] = float("inf")
    with override_config(LaunchConfig(32, 1, 2, 4)):
        y, final = functional.exp_scan(x, torch.tensor(decay, device=device), backend=backend)
    assert y[:, 0].abs().tolist() == [[0.0, float("inf"), 0.0]] * steps
    assert final.abs().tolist() == [[0.0, float("inf"), 0.0]]


@every_kind
def test_a_call_takes_steps_and_sequences(kind, each_backend, device):
    """Told apart by the number of axes; ``backend`` counts for both."""
    called, scanned = (make(kind, (2, 2), delay=2.0, batch_size=3, device=device) for _ in range(2))
    x = spikes(4, 3, 2, 2).to(device)
    assert torch.equal(called(x), scanned.scan(x))
    assert torch.equal(called(functional.pack_spikes(x)), scanned.scan(x))
    assert torch.equal(called(x[0]), scanned(x[0]))
    assert torch.equal(nn.Sequential(called, nn.Identity())(x), scanned.scan(x))
    assert same(snapshot(called), snapshot(scanned))
    for given in (x, x[0]):
        with pytest.raises(BackendError, match="backend is 'cpu'"):
            called(given, backend="cpu")


@every_kind
def test_every_way_to_run_fires_the_hooks_once(kind, device):
    """And a hook may replace what goes in and what comes out."""
    synapse, plain = (make(kind, delay=1.0, device=device) for _ in range(2))
    seen = []
    synapse.register_forward_pre_hook(lambda module, inputs: seen.append("in") or (inputs[0] * 2,))
    synapse.register_forward_hook(lambda module, inputs, result: seen.append("out"))
    x, sel = torch.rand(3, 1, 3, device=device), torch.ones(1, 3, device=device)
    assert torch.equal(synapse(x[0]), plain(x[0] * 2))
    assert torch.equal(synapse(x), plain(x * 2))
    assert torch.equal(synapse.scan(x), plain.scan(x * 2))
    for a, b in zip(synapse.scan_at(x, sel), plain.scan_at(x * 2, sel), strict=True):
        assert torch.equal(a, b)
    synapse.advance(x), plain.advance(x * 2)
    assert seen == ["in", "out"] * 5 and same(snapshot(synapse), snapshot(plain))
