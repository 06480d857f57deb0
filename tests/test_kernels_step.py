"""Kernels of the fused step and its adjoint against plain PyTorch."""

import pytest
import torch
from against import (
    BF16,
    F32,
    F64,
    FLOATING,
    INPUTS,
    by_kernel,
    by_reference,
    exact,
    tensors,
    uniform,
)

from tritonsyn.backend import interpreting
from tritonsyn.launch import step as launch
from tritonsyn.testing import assert_close_as_torch, assert_identical
from tritonsyn.values import compute_dtype

KINDS = pytest.mark.parametrize("count", [1, 2], ids=["single", "double"])
SIZES = [(1, 1), (1, 32), (1, 33), (3, 11), (2, 48), (97, 1), (5, 0), (0, 5)]


def coefficients(synapses, count, dtype, per_synapse=(False, False, False)):
    """Gain and decays, each one value or one per synapse."""
    shapes = [(synapses,) if each else () for each in per_synapse]
    values = [uniform(*shape, seed=90 + i) for i, shape in enumerate(shapes)]
    gain, *decays = (value.to(compute_dtype(dtype)) for value in values)
    return gain, decays[:count]


def records_of(count, slots, batch, synapses, dtype):
    return [uniform(slots, batch, synapses, seed=i).to(dtype) * 4 - 2 for i in range(count)]


def graded(batch, synapses, dtype=F32):
    """Input of any dtype: zeros, ones, and other values where the dtype has them."""
    return (uniform(batch, synapses, seed=50) * 4 - 1).clamp(min=0).to(dtype)


def check(device, name, *arguments, margin=64):
    """Everything that floats as accurate as PyTorch, everything else the same."""
    actual = by_kernel(device, "step", name, *arguments, margin=margin)
    plain = by_reference("step", name, *arguments)
    truth = by_reference("step", name, *exact(arguments))
    # Components cancel in the current and in the input's gradient.
    sizes = [t.to(F64).nan_to_num(0.0).abs().max() for t in tensors(truth.arguments) if t.numel()]
    scale = float(max(sizes, default=0.0))
    for a, t, p in zip(tensors(actual), tensors(truth), tensors(plain), strict=True):
        if p.is_floating_point():
            assert_close_as_torch(a, t, p, scale=scale)
        else:
            assert_identical(a, p)
    return actual


def check_step(device, x, records, gain, decays, pointers, spike_pointer, margin=64):
    spikes = uniform(*records[0].shape, seed=70) < 0.5
    arguments = (x, records, spikes, gain, decays, pointers, spike_pointer)
    outcome = check(device, "step", *arguments, margin=margin)
    _, *after, spikes_after = outcome.arguments[: len(records) + 2]
    states = zip(
        [*records, spikes], [*after, spikes_after], [*pointers, spike_pointer], strict=True
    )
    for before, now, pointer in states:
        others = [slot for slot in range(before.shape[0]) if slot != int(pointer)]
        assert_identical(now[others], before[others])
    y = outcome.returned[0]
    stored = [record[int(p)] for record, p in zip(after, pointers, strict=True)]
    if len(stored) == 1:  # the step returns what it recorded
        assert_identical(y, stored[0])
    elif y.dtype != BF16 or not interpreting():  # the interpreter cuts bfloat16 off
        assert_identical(y, (stored[0].to(gain.dtype) - stored[1].to(gain.dtype)).to(y.dtype))


@KINDS
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("x_dtype", INPUTS, ids=str)
def test_step_takes_every_dtype(device, count, dtype, x_dtype):
    gain, decays = coefficients(5, count, dtype)
    records = records_of(count, 3, 2, 5, dtype)
    check_step(device, graded(2, 5, x_dtype), records, gain, decays, [1, 2][:count], 0)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_step_at_every_slot(device, slots):
    gain, decays = coefficients(3, 2, F64)
    for pointer in range(slots):
        pointers = [pointer, (pointer + 1) % slots]
        records = records_of(2, slots, 2, 3, F64)
        check_step(device, graded(2, 3), records, gain, decays, pointers, (pointer + 2) % slots)


def test_slots_may_be_kept_on_the_device(device):
    gain, decays = coefficients(3, 2, F64)
    records = records_of(2, 4, 2, 3, F64)
    slots = [torch.tensor(slot) for slot in (0, 3, 2)]
    check_step(device, graded(2, 3), records, gain, decays, slots[:2], slots[2])
    check(device, "step_backward", graded(2, 3), records, gain, decays, slots[:2], F64, True)


@KINDS
@pytest.mark.parametrize("per_synapse", [(True, False, False), (False, True, True), (True,) * 3])
def test_coefficients_of_each_synapse(device, small_tiles, count, per_synapse):
    for batch, synapses in [(4, 3), (3, 45)]:
        gain, decays = coefficients(synapses, count, F32, per_synapse)
        records = records_of(count, 2, batch, synapses, F32)
        x, pointers = graded(batch, synapses), [1, 0][:count]
        check_step(device, x, records, gain, decays, pointers, 1)
        check(device, "step_backward", x, records, gain, decays, pointers, F32, True)


@pytest.mark.parametrize(("batch", "synapses"), SIZES)
@pytest.mark.parametrize("margin", [64, 3])
def test_edges_of_tiles(device, small_tiles, batch, synapses, margin):
    gain, decays = coefficients(synapses, 2, F32, (True, True, False))
    records, x = records_of(2, 3, batch, synapses, F32), graded(batch, synapses)
    check_step(device, x, records, gain, decays, [0, 2], 1, margin=margin)
    arguments = (x, records, gain, decays, [0, 2], F32, True)
    check(device, "step_backward", *arguments, margin=margin)


def test_nan_input_is_a_spike_and_a_nan_current(device):
    x = torch.tensor([[float("nan"), 0.0, 1.0]])
    gain, decays = coefficients(3, 1, F32)
    arguments = (x, [torch.zeros(2, 1, 3)], torch.zeros(2, 1, 3).bool(), gain, decays, [0], 0)
    outcome = by_kernel(device, "step", "step", *arguments)
    assert outcome.returned[0].isnan().tolist() == [[True, False, False]]
    assert outcome.arguments[2][0].tolist() == [[True, False, True]]


def test_input_and_gradient_may_have_any_strides(device):
    gain, decays = coefficients(3, 1, F64)
    records = records_of(1, 2, 4, 3, F64)
    x = graded(3, 4, F64).t()
    reference = by_reference("step", "step_backward", x, records, gain, decays, [0], F64, False)
    moved = [t.to(device) for t in (x, records[0], gain, decays[0])]
    dx, _ = launch.step_backward(moved[0], [moved[1]], moved[2], [moved[3]], [0], F64, False)
    torch.testing.assert_close(dx.cpu(), reference.returned[0], rtol=1e-15, atol=0)


@KINDS
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("want_z", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["record_only", "dy"])
def test_adjoint_takes_every_dtype(device, count, dtype, want_z, given):
    gain, decays = coefficients(5, count, dtype)
    drecords = records_of(count, 3, 2, 5, dtype)
    dy = graded(2, 5, dtype) if given else None
    for dx_dtype in (None, dtype):
        check(device, "step_backward", dy, drecords, gain, decays, [1, 2][:count], dx_dtype, want_z)


@pytest.mark.parametrize("dx_dtype", [torch.float16, F64], ids=str)
def test_adjoint_converts_to_the_dtype_of_the_input(device, dx_dtype):
    gain, decays = coefficients(5, 2, F32)
    drecords = records_of(2, 3, 2, 5, F32)
    check(device, "step_backward", graded(2, 5), drecords, gain, decays, [0, 1], dx_dtype, False)


@KINDS
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_adjoint_at_every_slot(device, count, slots):
    gain, decays = coefficients(3, count, F64)
    for pointer in range(slots):
        pointers = [pointer, (pointer + 1) % slots][:count]
        drecords = records_of(count, slots, 2, 3, F64)
        outcome = check(
            device, "step_backward", graded(2, 3, F64), drecords, gain, decays, pointers, F64, True
        )
        if slots > 1:  # the slot that was written has passed its gradient on
            after = outcome.arguments[1 : 1 + count]
            assert not any(d[p].any() for d, p in zip(after, pointers, strict=True))


@pytest.mark.gpu
def test_offsets_pass_the_range_of_int32(device):
    if torch.cuda.mem_get_info(device)[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    record = torch.ones(3, 2, 2**29, dtype=torch.float16, device=device)
    spikes = torch.zeros(3, 2, 2**29, dtype=torch.bool, device=device)
    x = torch.ones(2, 2**29, dtype=torch.bool, device=device)
    one, half = torch.ones((), device=device), torch.full((), 0.5, device=device)
    y = launch.step(x, [record], spikes, one, [half], [2], 2)
    assert torch.equal(y, torch.full_like(y, 1.5))
    assert torch.equal(record[2], y)
    assert spikes[2].all()
    assert not spikes[:2].any()
    assert torch.equal(record[:2], torch.ones_like(record[:2]))
