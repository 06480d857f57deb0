"""Kernels of the record against plain PyTorch: every dtype, slot and edge of a tile."""

import pytest
import torch
from against import BF16, F16, F32, F64, FLOATING, INPUTS, by_kernel, by_reference, uniform

from tritonsyn.backend import interpreting
from tritonsyn.launch import record as launch
from tritonsyn.testing import assert_close_as_torch, assert_identical

SIZES = [(1, 1), (1, 31), (4, 8), (3, 11), (2, 48), (5, 0), (0, 5)]


def whole(*shape, dtype, seed=0):
    """Whole numbers that every dtype holds, zero among them."""
    return (uniform(*shape, seed=seed) * 200 - 50).clamp(min=0).floor().to(dtype)


def check(device, name, *arguments, margin=64):
    actual = by_kernel(device, "record", name, *arguments, margin=margin)
    expected = by_reference("record", name, *arguments)
    for a, b in zip(actual, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)


@pytest.mark.parametrize("record_dtype", [*FLOATING, torch.bool], ids=str)
@pytest.mark.parametrize("value_dtype", INPUTS, ids=str)
def test_push_converts(device, record_dtype, value_dtype):
    record = whole(3, 2, 5, dtype=record_dtype)
    value = whole(2, 5, dtype=value_dtype, seed=1)
    if value_dtype.is_floating_point:
        value[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    check(device, "push", record, value, 1)


@pytest.mark.parametrize("value_dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("record_dtype", [F32, BF16, F16], ids=str)
def test_push_rounds_as_pytorch_does(device, record_dtype, value_dtype):
    value = uniform(2, 50).to(value_dtype)
    record = torch.zeros(1, 2, 50, dtype=record_dtype)
    actual = by_kernel(device, "record", "push", record, value, 0).arguments[0]
    expected = by_reference("record", "push", record, value, 0).arguments[0]
    assert_close_as_torch(actual[0], value.to(F64), expected[0])
    if record_dtype != BF16 or not interpreting():  # the interpreter cuts bfloat16 off
        assert_identical(actual, expected)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_minus_zero_is_no_spike_and_the_smallest_number_is_one(device, dtype):
    if dtype == BF16 and interpreting():
        pytest.skip("the interpreter compares bfloat16 as bits")
    value = torch.tensor([[-0.0, torch.finfo(dtype).smallest_normal]], dtype=dtype)
    record = by_kernel(device, "record", "push", torch.zeros(1, 1, 2).bool(), value, 0).arguments[0]
    assert record.tolist() == [[[False, True]]]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_slot_is_written_and_taken_alone(device, dtype, slots):
    record = uniform(slots, 2, 3).to(dtype)
    for slot in range(slots):
        check(device, "push", record, uniform(2, 3, seed=1).to(dtype), slot)
        check(device, "take", record, slot)


@pytest.mark.parametrize(("batch", "synapses"), SIZES)
@pytest.mark.parametrize("margin", [64, 3])
def test_edges_of_tiles(device, small_tiles, batch, synapses, margin):
    record = uniform(3, batch, synapses).float()
    check(device, "push", record, uniform(batch, synapses, seed=1).float(), 2, margin=margin)
    check(device, "take", record, 0, margin=margin)


def test_a_value_may_have_any_strides(device):
    record = uniform(2, 4, 3).to(device)
    value = uniform(3, 4, seed=1).to(device).t()
    launch.push(record, value, 1)
    assert_identical(record[1], value)
    launch.push(record, value[:1].expand(4, 3), 0)
    assert_identical(record[0], value[:1].expand(4, 3))


@pytest.mark.gpu
def test_offsets_pass_the_range_of_int32(device):
    if torch.cuda.mem_get_info(device)[0] < 5 << 30:
        pytest.skip("needs 5 GiB of free GPU memory")
    record = torch.zeros(3, 1, 2**30, dtype=torch.bool, device=device)
    launch.push(record, torch.ones_like(record[0]), 2)
    assert [int(slot.sum()) for slot in record] == [0, 0, 2**30]
