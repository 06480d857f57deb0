"""Kernels of the projection of spikes against plain PyTorch: as bits over time, and in a walk."""

from collections.abc import Iterator

import pytest
import torch
from against import F32, F64, by_kernel, uniform
from test_kernels_projection import EMPTY, SIZES, connections, signal

from tritonsyn.functional import pack_spikes
from tritonsyn.launch import scan as decay_launch
from tritonsyn.launch import spikes as launch
from tritonsyn.launch.config import LaunchConfig, override_config
from tritonsyn.reference import projection as dense_reference
from tritonsyn.reference import scan as decay_reference
from tritonsyn.reference import spikes as reference
from tritonsyn.testing import poisoned_empty
from tritonsyn.values import PackedSpikes, SpikeTrains

LONG = [(70, 2, 3, 5, 40), (33, 3, 2, 33, 33), (45, 1, 6, 2, 200)]
"""More words than one, before the first step too; rows and outputs of no full tile; more delays
than steps."""
# A walk takes a step of the interpreter for each spike and output.
walks = pytest.mark.parametrize(
    ("size", "rate"),
    [
        pytest.param(s, r, marks=[pytest.mark.slow] if r == 1.0 and s in SIZES[2:] else [])
        for s in (*SIZES, *EMPTY)
        for r in (0.0, 0.3, 1.0)
    ],
    ids=str,
)
walks_in_tiles = pytest.mark.parametrize(
    "size",
    [pytest.param(s, marks=[pytest.mark.slow] if s == SIZES[3] else []) for s in (*SIZES, *EMPTY)],
    ids=str,
)


@pytest.fixture
def tiny_tiles() -> Iterator[None]:
    """Tiles that sizes go beyond in every direction, and more parts than some sizes can fill."""
    walks = LaunchConfig(4, UNROLL=3, chunks=3)
    bits = LaunchConfig(16, UNROLL=10, chunks=3, BLOCK_R=2, BLOCK_C=2)
    with (
        override_config(walks, "spike_sum_kernel", "spike_dot_kernel", "transpose_bits_kernel"),
        override_config(bits, "pack_trains_kernel", "bit_sum_kernel", "bit_dot_kernel"),
    ):
        yield


def drawn(size, rate):
    return uniform(*size[:3], seed=4) < rate


def densely(size, rate, dtype=F64):
    """The projection of the same as numbers, and its adjoint to the weight, in float64."""
    steps, batch, _, outputs, slots = size
    weight, back = connections(size, dtype)
    x, way = drawn(size, rate).to(F64), (steps, slots, "gemm", "ieee")
    dv = signal(steps, batch, outputs, dtype=dtype).to(F64)
    v = dense_reference.project(x, weight.to(F64), back, *way)
    return v, dense_reference.project_backward(dv, x, None, back, *way)[1]


def on(device, spikes):
    return PackedSpikes(spikes.words.to(device), spikes.shape)


# -- bits over time ----------------------------------------------------------------------------


def check_bits(device, size, rate, dtype=F64):
    """The sum and its adjoint: equal to a dense projection, nothing written beside them."""
    slots, tolerance = size[-1], 1e-12 if dtype == F64 else 1e-5
    weight, back = connections(size, dtype)
    x = drawn(size, rate)
    words = reference.pack_trains(x, slots)
    trains, (expected, gradient) = SpikeTrains(words, tuple(x.shape)), densely(size, rate, dtype)
    plain = reference.project_spikes(trains, weight, back, slots)
    v = by_kernel(device, "spikes", "project_spikes", trains, weight, back, slots, margin=63)
    dv = signal(size[0], size[1], size[3], dtype=dtype)
    plain_gradient = reference.project_spikes_weight(dv, trains, back, slots)
    dweight = by_kernel(
        device, "spikes", "project_spikes_weight", dv, trains, back, slots, margin=63
    )
    for wanted, *found in (
        (expected, plain, v.returned[0]),
        (gradient, plain_gradient, dweight.returned[0]),
    ):
        for actual in found:
            assert actual.dtype == dtype
            torch.testing.assert_close(actual.to(F64), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["bool", "float", "packed"])
@pytest.mark.parametrize("size", [SIZES[2], LONG[1]], ids=str)
def test_bits_are_packed_over_time(device, size, kind):
    x, slots = drawn(size, 0.3), size[-1]
    given = {"bool": x, "float": x.to(F32) * -2, "packed": pack_spikes(x)}[kind]
    words = reference.pack_trains(given, slots)
    assert torch.equal(by_kernel(device, "spikes", "pack_trains", given, slots).returned[0], words)
    lead = 32 * SpikeTrains.lead(slots)
    bits = (words[:-2].view(*x.shape[1:], -1, 1) >> torch.arange(32)) & 1
    assert torch.equal(bits.flatten(2)[..., lead : lead + size[0]].permute(2, 0, 1) != 0, x)
    assert bits.sum() == x.sum()


@pytest.mark.parametrize(("width", "inputs"), [(1, 16), (1 << 22, 8), (1 << 26, 1)])
def test_bits_of_the_inputs_of_a_turn_are_counted_in_32_bits(width, inputs):
    assert launch._counting(LaunchConfig(32, BLOCK_C=16), width).BLOCK_C == inputs


def test_bits_from_before_a_sequence_are_not_kept():
    assert SpikeTrains.width(5, 1_000_000) == SpikeTrains.width(5, 66) == 3


@pytest.mark.parametrize("size", [SIZES[0], SIZES[2], LONG[0], LONG[2], *EMPTY], ids=str)
def test_bits_over_time(device, size):
    check_bits(device, size, 0.3)


def test_bits_of_float32(device):
    check_bits(device, LONG[0], 0.3, F32)


@pytest.mark.parametrize("size", [SIZES[1], SIZES[3], *LONG[1:], *EMPTY], ids=str)
def test_edges_of_tiles_of_bits(device, tiny_tiles, size):
    check_bits(device, size, 0.3)


def test_weights_that_are_not_finite_reach_the_steps_of_their_spikes(device):
    x = torch.zeros(40, 1, 2, dtype=torch.bool)
    x[[0, 31, 32], 0, 1] = True
    weight = torch.tensor([[float("nan"), float("inf")]], device=device)
    back = torch.tensor([[1, 2]], dtype=torch.int32, device=device)
    trains = SpikeTrains(launch.pack_trains(x.to(device), 3), tuple(x.shape))
    v = launch.project_spikes(trains, weight, back, 3).flatten()
    assert v.nonzero().flatten().tolist() == [2, 33, 34]
    assert v[[2, 33, 34]].isinf().all()


# -- the walk ----------------------------------------------------------------------------------


@walks
def test_walk_over_spikes(device, size, rate):
    weight, back = connections(size)
    spikes, slots = pack_spikes(drawn(size, rate)), size[-1]
    with poisoned_empty():
        v = launch.project_spikes(on(device, spikes), weight.to(device), back.to(device), slots)
    expected = reference.project_spikes(spikes, weight, back, slots)
    torch.testing.assert_close(v.cpu(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected, densely(size, rate)[0], rtol=0, atol=1e-12)


@walks
def test_adjoint_of_the_walk(device, size, rate):
    steps, batch, _, outputs, slots = size
    _, back = connections(size)
    spikes, dv = pack_spikes(drawn(size, rate)), signal(steps, batch, outputs)
    with poisoned_empty():
        arguments = dv.to(device), on(device, spikes), back.to(device), slots
        dweight = launch.project_spikes_weight(*arguments)
    expected = reference.project_spikes_weight(dv, spikes, back, slots)
    torch.testing.assert_close(dweight.cpu(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected, densely(size, rate)[1], rtol=0, atol=1e-12)


@walks_in_tiles
def test_edges_of_tiles_of_the_walks(device, tiny_tiles, size):
    test_walk_over_spikes(device, size, 0.3)
    test_adjoint_of_the_walk(device, size, 0.3)


def test_a_word_with_its_sign_bit_set(device):
    """Input 31 is the sign of an int32 word."""
    x = torch.zeros(2, 1, 40, dtype=torch.bool)
    x[0, 0, 31] = x[1, 0, 39] = True
    weight = torch.arange(40.0, dtype=F64).view(1, 40)
    back = torch.ones(1, 40, dtype=torch.int32)
    spikes = on(device, pack_spikes(x))
    v = launch.project_spikes(spikes, weight.to(device), back.to(device), 2)
    assert v.flatten().tolist() == [0.0, 31.0]


@pytest.mark.parametrize("rows", [0, 1, 31, 64, 300])
@pytest.mark.parametrize("synapses", [1, 32, 45])
def test_bits_are_transposed(device, tiny_tiles, rows, synapses):
    x = uniform(rows, synapses, seed=5) < 0.3
    words = decay_reference.pack(x).to(device)
    with poisoned_empty():
        turned = decay_launch.transpose_bits(words, synapses)
    expected = decay_reference.pack(x.t())
    assert torch.equal(turned.cpu(), expected)
    assert torch.equal(decay_reference.transpose_bits(words.cpu(), synapses), expected)
