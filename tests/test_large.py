"""Sizes about 2**31, without the memory for them."""

import pytest
import torch
import triton
import triton.language as tl
from synapses import every_kind, make

from tritonsyn import functional
from tritonsyn.checks import LARGEST_ROW
from tritonsyn.functional import ReadRule, Ring
from tritonsyn.kernels.common import tile_of
from tritonsyn.launch.launcher import tiles

LARGEST = 2**31 - 2**20
REFUSED = f"elements in a row of the batch, but at most {LARGEST} are allowed"
HALF = torch.tensor(0.5)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@triton.jit
def tile_kernel(out_ptr, program, size, BLOCK: tl.constexpr):
    tile, other = tile_of(program, size, BLOCK)
    tl.store(out_ptr, tile)
    tl.store(out_ptr + 1, other)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 2**31 - 32, 2**31 - 31, 2**31 - 1])
@pytest.mark.parametrize("row", [0, 3])
def test_a_program_finds_its_tile_of_any_axis(device, size, row):
    out = torch.empty(2, dtype=torch.int64, device=device)
    for block in (32, 1024):
        count = tiles(size, block)
        program = row * count + count - 1
        if program < 2**31:  # as the programs of a grid are
            tile_kernel[(1,)](out, program, size, BLOCK=block)
            assert out.tolist() == [count - 1, row]


def test_the_largest_row_leaves_room_for_the_largest_tile():
    assert LARGEST_ROW == LARGEST
    for block in (32, 1024, 2**20):  # the last place that a program of a row computes
        assert tiles(LARGEST_ROW, block) * block < 2**31


@every_kind
@pytest.mark.parametrize("shape", [LARGEST + 1, (3, 2**30), 2**31])
def test_a_synapse_refuses_a_larger_group(kind, shape):
    with pytest.raises(ValueError, match=f"shape has .* {REFUSED}"):
        make(kind, shape, device="meta")


def test_a_synapse_takes_the_largest_group():
    assert make("single", LARGEST, device="meta").count == LARGEST


def test_operations_refuse_a_larger_row_and_take_the_batch_of_any_size():
    record, marks = meta(2, 1, LARGEST + 1), meta(2, 1, LARGEST + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"ring.components has {LARGEST + 1} {REFUSED}"):
        functional.step(record[0], Ring((record,), (0,), marks, 0), HALF, (HALF,))
    rule = ReadRule("previous", 1.0, 1.0)
    with pytest.raises(ValueError, match=f"records has {LARGEST + 1} {REFUSED}"):
        functional.select((record,), meta(1, LARGEST + 1), (None,), (0,), rule)
    small = torch.zeros(2, 1, 4)
    times = torch.zeros(1, 1, 1).expand(1, 4, 2**29)
    with pytest.raises(ValueError, match=f"sel has {2**31} {REFUSED}"):
        functional.select((small,), times, (None,), (0,), rule)
    with pytest.raises(ValueError, match=f"sel has {2**31} {REFUSED}"):
        functional.select_scan((small,), times, (None,), rule, 1)
    x = torch.ones(1, 1).expand(0, 2**31)
    with pytest.raises(ValueError, match=f"x has {2**31} {REFUSED}"):
        functional.exp_scan(x, HALF.expand(2**31))
    assert functional.exp_scan(torch.empty(0, 2**31, 0), 0.5)[0].shape == (0, 2**31, 0)


@pytest.mark.parametrize(("inputs", "outputs"), [(LARGEST + 1, 1), (1, LARGEST + 1)])
def test_a_layer_refuses_more_inputs_or_outputs(inputs, outputs):
    x, weight = torch.ones(1, 1, 1).expand(1, 1, inputs), torch.ones(1, 1).expand(outputs, inputs)
    with pytest.raises(ValueError, match=f"weight has {LARGEST + 1} {REFUSED}"):
        functional.delayed_linear(x, weight, weight, decay=0.5, max_delay=1.0)
