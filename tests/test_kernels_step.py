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
from tritonsyn.reference import step as reference
from tritonsyn.testing import assert_close_as_torch, assert_identical
from tritonsyn.values import Dynamics, Ring, compute_dtype

STATES = {"single": 1, "double": 2, "alpha": 2}
KINDS = pytest.mark.parametrize("kind", STATES)
SIZES = [(1, 1), (1, 32), (1, 33), (3, 11), (2, 48), (97, 1), (5, 0), (0, 5)]


def dynamics_of(kind, synapses, dtype, per_synapse=(False, False, False)):
    """Of constants that are one value, or one per synapse."""
    shapes = [(synapses,) if each else () for each in per_synapse]
    values = [uniform(*shape, seed=90 + i) for i, shape in enumerate(shapes)]
    gain, first, second = (value.to(compute_dtype(dtype)) for value in values)
    if kind == "alpha":
        return Dynamics(gain, (first,), second)
    return Dynamics(gain, (first, second)[: STATES[kind]])


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


def check_step(device, x, records, dynamics, pointers, spike_pointer, margin=64):
    spikes = uniform(*records[0].shape, seed=70) < 0.5
    ring = Ring(records, pointers, spikes, spike_pointer)
    outcome = check(device, "step", x, ring, dynamics, margin=margin)
    after = outcome.arguments[1 : len(records) + 1]
    spikes_after = next(t for t in outcome.arguments[1:] if t.dtype == torch.bool)
    states = zip(
        [*records, spikes], [*after, spikes_after], [*pointers, spike_pointer], strict=True
    )
    for before, now, pointer in states:
        others = [slot for slot in range(before.shape[0]) if slot != int(pointer)]
        assert_identical(now[others], before[others])
    y = outcome.returned[0]
    stored = [record[int(p)] for record, p in zip(after, pointers, strict=True)]
    if dynamics.mix != (1.0, -1.0):  # the step returns what it recorded
        assert_identical(y, stored[-1])
    elif y.dtype != BF16 or not interpreting():  # the interpreter cuts bfloat16 off
        first, second = (state.to(dynamics.gain.dtype) for state in stored)
        assert_identical(y, (first - second).to(y.dtype))


@KINDS
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("x_dtype", INPUTS, ids=str)
def test_step_takes_every_dtype(device, kind, dtype, x_dtype):
    dynamics = dynamics_of(kind, 5, dtype)
    records = records_of(STATES[kind], 3, 2, 5, dtype)
    check_step(device, graded(2, 5, x_dtype), records, dynamics, [1, 2][: STATES[kind]], 0)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_step_at_every_slot(device, slots):
    dynamics = dynamics_of("double", 3, F64)
    for pointer in range(slots):
        pointers = [pointer, (pointer + 1) % slots]
        records = records_of(2, slots, 2, 3, F64)
        check_step(device, graded(2, 3), records, dynamics, pointers, (pointer + 2) % slots)


def test_slots_may_be_kept_on_the_device(device):
    dynamics = dynamics_of("double", 3, F64)
    records = records_of(2, 4, 2, 3, F64)
    slots = [torch.tensor(slot) for slot in (0, 3, 2)]
    check_step(device, graded(2, 3), records, dynamics, slots[:2], slots[2])
    check(device, "step_backward", graded(2, 3), records, None, dynamics, slots[:2], F64, True)


@KINDS
@pytest.mark.parametrize("per_synapse", [(True, False, False), (False, True, True), (True,) * 3])
def test_coefficients_of_each_synapse(device, small_tiles, kind, per_synapse):
    for batch, synapses in [(4, 3), (3, 45)]:
        dynamics = dynamics_of(kind, synapses, F32, per_synapse)
        records = records_of(STATES[kind], 2, batch, synapses, F32)
        x, pointers = graded(batch, synapses), [1, 0][: STATES[kind]]
        check_step(device, x, records, dynamics, pointers, 1)
        check(device, "step_backward", x, records, None, dynamics, pointers, F32, True)


@pytest.mark.parametrize(("batch", "synapses"), SIZES)
@pytest.mark.parametrize("margin", [64, 3])
def test_edges_of_tiles(device, small_tiles, batch, synapses, margin):
    dynamics = dynamics_of("double", synapses, F32, (True, True, False))
    records, x = records_of(2, 3, batch, synapses, F32), graded(batch, synapses)
    check_step(device, x, records, dynamics, [0, 2], 1, margin=margin)
    arguments = (x, records, None, dynamics, [0, 2], F32, True)
    check(device, "step_backward", *arguments, margin=margin)


def test_nan_input_is_a_spike_and_a_nan_current(device):
    x = torch.tensor([[float("nan"), 0.0, 1.0]])
    dynamics = dynamics_of("single", 3, F32)
    ring = Ring([torch.zeros(2, 1, 3)], [0], torch.zeros(2, 1, 3).bool(), 0)
    outcome = by_kernel(device, "step", "step", x, ring, dynamics)
    assert outcome.returned[0].isnan().tolist() == [[True, False, False]]
    assert outcome.arguments[2][0].tolist() == [[True, False, True]]


def test_input_and_gradient_may_have_any_strides(device):
    dynamics = dynamics_of("single", 3, F64)
    records = records_of(1, 2, 4, 3, F64)
    x = graded(3, 4, F64).t()
    plain = by_reference("step", "step_backward", x, records, None, dynamics, [0], F64, False)
    moved = Dynamics.of([t.to(device) for t in dynamics.constants], coupled=False)
    arguments = (x.to(device), [records[0].to(device)], None, moved, [0], F64, False)
    dx, _ = launch.step_backward(*arguments)
    torch.testing.assert_close(dx.cpu(), plain.returned[0], rtol=1e-15, atol=0)


@KINDS
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("want_z", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["record_only", "dy"])
def test_adjoint_takes_every_dtype(device, kind, dtype, want_z, given):
    dynamics = dynamics_of(kind, 5, dtype)
    drecords = records_of(STATES[kind], 3, 2, 5, dtype)
    dy = graded(2, 5, dtype) if given else None
    pointers = [1, 2][: STATES[kind]]
    for dx_dtype in (None, dtype):
        check(device, "step_backward", dy, drecords, None, dynamics, pointers, dx_dtype, want_z)


@KINDS
@pytest.mark.parametrize("want_z", [False, True])
def test_adjoint_of_a_step_alone(device, small_tiles, kind, want_z):
    """Without gradients of the state: what zeros give."""
    dynamics, states = dynamics_of(kind, 5, F64, (True, False, True)), STATES[kind]
    given = (None, dynamics, [0] * states, F64, want_z)
    outcome = check(device, "step_backward", graded(3, 5), None, *given)
    zeros = [torch.zeros(1, 3, 5, dtype=F64) for _ in range(states)]
    expected = by_reference("step", "step_backward", graded(3, 5), zeros, *given)
    for a, b in zip(outcome.returned, expected.returned, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dx_dtype", [torch.float16, F64], ids=str)
def test_adjoint_converts_to_the_dtype_of_the_input(device, dx_dtype):
    dynamics = dynamics_of("double", 5, F32)
    drecords = records_of(2, 3, 2, 5, F32)
    check(device, "step_backward", graded(2, 5), drecords, None, dynamics, [0, 1], dx_dtype, False)


@KINDS
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_adjoint_at_every_slot(device, kind, slots):
    dynamics = dynamics_of(kind, 3, F64)
    for pointer in range(slots):
        pointers = [pointer, (pointer + 1) % slots][: STATES[kind]]
        drecords = records_of(STATES[kind], slots, 2, 3, F64)
        outcome = check(
            device,
            "step_backward",
            graded(2, 3, F64),
            drecords,
            None,
            dynamics,
            pointers,
            F64,
            True,
        )
        if slots > 1:  # the slot that was written has passed its gradient on
            after = outcome.arguments[1 : 1 + STATES[kind]]
            assert not any(d[p].any() for d, p in zip(after, pointers, strict=True))


@pytest.mark.parametrize("name", ["reference", "launch"])
@pytest.mark.parametrize(
    ("synapses", "counted"), [(3, 0), (3, 3), (64, 0), (64, 4), (64, -2), (200, 7 << 19)]
)
def test_pointers_move_whatever_has_been_counted(device, small_tiles, name, synapses, counted):
    """By the last of 1, 2 or 7 programs, where a multiple of those has arrived before."""
    module = launch if name == "launch" else reference
    constants = dynamics_of("double", synapses, F32).constants
    dynamics = Dynamics.of([t.to(device) for t in constants], coupled=False)
    records = [record.to(device) for record in records_of(2, 5, 1, synapses, F32)]
    slots = [torch.tensor(slot, device=device) for slot in (0, 3, 4)]
    arrivals = torch.tensor(counted, dtype=torch.int32, device=device)
    spikes = torch.zeros(5, 1, synapses, dtype=torch.bool, device=device)
    ring = Ring(records, slots[:2], spikes, slots[2], arrivals)
    for step in range(1, 4):
        module.step(torch.ones(1, synapses, device=device), ring, dynamics)
        assert [slot.item() for slot in slots] == [step, (3 + step) % 5, (4 + step) % 5]
        assert arrivals.item() == counted
    assert spikes[[4, 0, 1]].all() and not spikes[[2, 3]].any()


def test_a_lost_arrival_does_not_stop_the_pointers(device, small_tiles):
    """They move once a step all the same, before the second of two programs arrives."""
    one, slot, spike_slot = (torch.tensor(v, device=device) for v in (1.0, 0, 2))
    arrivals = torch.tensor(1, dtype=torch.int32, device=device)
    record = torch.zeros(3, 1, 64, device=device)
    ring = Ring([record], [slot], record.bool(), spike_slot, arrivals)
    for step in range(1, 5):
        launch.step(torch.ones(1, 64, device=device), ring, Dynamics(one, (one,)))
        assert (slot.item(), spike_slot.item(), arrivals.item()) == (step % 3, (2 + step) % 3, 1)


@KINDS
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("slots", [1, 3])
def test_step_with_carries(device, small_tiles, kind, dtype, slots):
    """The states start from the carries, which take them as they are before they are rounded."""
    batch, synapses, states = 3, 13, STATES[kind]
    dynamics = dynamics_of(kind, synapses, dtype, (False, True, False))
    records, x = records_of(states, slots, batch, synapses, dtype), graded(batch, synapses)
    pointers, spikes = [slots - 1, 0][:states], torch.zeros(slots, batch, synapses).bool()
    carries = [uniform(batch, synapses, seed=30 + i).to(F32) for i in range(states)]
    ring = Ring(records, pointers, spikes, 0, None, carries)
    outcome = check(device, "step", x, ring, dynamics)
    after, carried = outcome.arguments[1 : 1 + states], outcome.arguments[2 + states :][:states]
    for before, now, slot in zip(records, after, pointers, strict=True):
        others = [place for place in range(slots) if place != slot]
        assert_identical(now[others], before[others])
    if dtype != BF16 or not interpreting():  # the interpreter cuts bfloat16 off
        for now, slot, carry in zip(after, pointers, carried, strict=True):
            assert_identical(now[slot], carry.to(dtype))
        assert_identical(outcome.returned[0], dynamics.current(carried).to(dtype))


@KINDS
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["state_only", "dy"])
def test_adjoint_with_carries(device, small_tiles, kind, dtype, given):
    """The written slot is emptied, and what it held goes on in the carries; no other slot moves."""
    batch, synapses, states = 3, 13, STATES[kind]
    dynamics = dynamics_of(kind, synapses, dtype, (True, False, True))
    drecords = records_of(states, 3, batch, synapses, dtype)
    dcarries = [uniform(batch, synapses, seed=30 + i).to(F32) for i in range(states)]
    dy, pointers = graded(batch, synapses, dtype) if given else None, [1, 2][:states]
    operands = (dy, drecords, dcarries, dynamics, pointers, F32, given)
    outcome = check(device, "step_backward", *operands)
    after = outcome.arguments[given : given + states]
    for before, now, slot in zip(drecords, after, pointers, strict=True):
        others = [place for place in range(3) if place != slot]
        assert_identical(now[others], before[others])
        assert not now[slot].any()


@pytest.mark.gpu
def test_offsets_pass_the_range_of_int32(device):
    if torch.cuda.mem_get_info(device)[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    record = torch.ones(3, 2, 2**29, dtype=torch.float16, device=device)
    spikes = torch.zeros(3, 2, 2**29, dtype=torch.bool, device=device)
    x = torch.ones(2, 2**29, dtype=torch.bool, device=device)
    one, half = torch.ones((), device=device), torch.full((), 0.5, device=device)
    y = launch.step(x, Ring([record], [2], spikes, 2), Dynamics(one, (half,)))
    assert torch.equal(y, torch.full_like(y, 1.5))
    assert torch.equal(record[2], y)
    assert spikes[2].all()
    assert not spikes[:2].any()
    assert torch.equal(record[:2], torch.ones_like(record[:2]))
