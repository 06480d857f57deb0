"""Kernels of the delayed projection against plain PyTorch: every strategy, dtype and edge."""

from collections.abc import Iterator

import pytest
import torch
from against import BF16, F16, F32, F64, FLOATING, by_kernel, by_reference, exact, tensors, uniform

from tritonsyn.launch import projection as launch
from tritonsyn.launch.config import LaunchConfig, override_config
from tritonsyn.launch.lines import room
from tritonsyn.reference import projection as reference
from tritonsyn.testing import assert_close_as_torch
from tritonsyn.values import Links, compute_dtype

# Steps, batch, inputs, outputs, slots: single ones, and one more or less than a tile.
SIZES = [(1, 1, 1, 1, 1), (2, 3, 5, 9, 3), (9, 2, 33, 2, 2), (5, 13, 3, 33, 6), (3, 33, 4, 8, 12)]
EMPTY = [(2, 0, 3, 2, 2), (2, 3, 0, 2, 2)]
SHIFTS = ("shift_sum_kernel", "shift_dot_kernel", "shift_step_kernel")
LISTS = ("links_sum_kernel", "links_dot_kernel", "links_step_kernel")
STRATEGIES = pytest.mark.parametrize("strategy", ["shift", "gemm"])
sized = pytest.mark.parametrize("size", [*SIZES, *EMPTY], ids=str)


@pytest.fixture
def tiny_tiles() -> Iterator[None]:
    """Tiles that sizes go beyond in every direction, and more parts than some sizes can fill."""
    shifts = LaunchConfig(32, UNROLL=3, chunks=3, BLOCK_R=4, BLOCK_C=2)
    products = LaunchConfig(16, BLOCK_R=16, BLOCK_C=16)  # tensor cores take no smaller ones
    with (
        override_config(shifts, "lines_kernel", "shift_table_kernel", *SHIFTS, *LISTS),
        override_config(products, "temporal_gemm_kernel", "temporal_gemm_dot_kernel"),
    ):
        yield


def connections(size, dtype=F64):
    """Weights, and delays that take every whole step up to the longest."""
    _, _, inputs, outputs, slots = size
    weight = (uniform(outputs, inputs, seed=1) * 2 - 1).to(dtype)
    back = torch.arange(outputs * inputs, dtype=torch.int32).view(outputs, inputs) * 7 % slots
    return weight, back


def signal(*shape, dtype=F64, seed=2):
    return (uniform(*shape, seed=seed) * 4 - 2).to(dtype)


def without_signs(arguments):
    return [a.abs() if isinstance(a, torch.Tensor) else a for a in arguments]


def all_ones(arguments):
    """What makes of a sum of products the number of its terms."""
    return [
        torch.ones_like(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments
    ]


def check(device, name, *arguments):
    """As accurate as PyTorch, nothing written beside the results, no element left out."""
    actual = by_kernel(device, "projection", name, *arguments, margin=63)
    plain = by_reference("projection", name, *arguments)
    truth = by_reference("projection", name, *exact(arguments))
    # What rounds is the sum of all terms without their signs, as often as it has terms; such
    # errors grow with the root of their number.
    sizes, terms = (
        by_reference("projection", name, *exact(given)).returned
        for given in (without_signs(arguments), all_ones(arguments))
    )
    found = zip(actual.returned, truth.returned, plain.returned, sizes, terms, strict=True)
    for a, t, p, size, count in found:
        scale = float(size.max() * count.max().clamp(min=1).sqrt()) if size.numel() else 0.0
        assert_close_as_torch(a, t, p, scale=scale)
    for a, b in zip(actual.arguments, tensors(arguments), strict=True):
        assert torch.equal(a, b)


def pasts(size):
    """How many rows come before the steps: none, and all that are read."""
    return sorted({0, size[-1] - 1})


@sized
@STRATEGIES
def test_projection(device, strategy, size):
    steps, batch, inputs, _, slots = size
    weight, back = connections(size)
    for before in pasts(size):
        sequence = signal(before + steps, batch, inputs)
        check(device, "project", sequence, weight, back, steps, slots, strategy, "ieee")


@sized
@STRATEGIES
def test_adjoint(device, strategy, size):
    steps, batch, inputs, outputs, slots = size
    weight, back = connections(size)
    dy = signal(steps, batch, outputs)
    for before in pasts(size):
        sequence, way = signal(before + steps, batch, inputs, seed=3), (slots, strategy, "ieee")
        check(device, "project_backward", dy, sequence, weight, back, before + steps, *way)


@STRATEGIES
def test_adjoint_to_one_operand(device, strategy):
    steps, batch, inputs, outputs, slots = size = SIZES[1]
    weight, back = connections(size)
    dy, sequence = signal(steps, batch, outputs), signal(steps, batch, inputs, seed=3)
    for operands in ((None, weight), (sequence, None)):
        check(device, "project_backward", dy, *operands, back, steps, slots, strategy, "ieee")


def check_all(device, strategy, size, dtype):
    """The projection of records of a dtype, and its adjoints."""
    steps, batch, inputs, outputs, slots = size
    weight, back = connections(size, compute_dtype(dtype))
    sequence = signal(steps + slots // 2, batch, inputs, dtype=dtype)
    dy = signal(steps, batch, outputs, dtype=compute_dtype(dtype))
    way = slots, strategy, "ieee"
    check(device, "project", sequence, weight, back, steps, *way)
    check(device, "project_backward", dy, sequence, weight, back, steps, *way)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@STRATEGIES
def test_every_dtype_of_the_records(device, strategy, dtype):
    check_all(device, strategy, SIZES[1], dtype)


@sized
@STRATEGIES
def test_edges_of_tiles(device, tiny_tiles, strategy, size):
    check_all(device, strategy, size, F32)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_tiles_of_several_warps(device, dtype):
    """Whose outputs warps share, each with several loads of a line, and ends beyond all sizes."""
    tall = LaunchConfig(512, num_warps=2, BLOCK_R=16)
    with override_config(tall, "shift_sum_kernel"):
        check_all(device, "shift", (17, 33, 2, 17, 4), dtype)


def listed(size, dtype=F64):
    """Connections of few inputs each, of none and, the first output's, of all."""
    mask = uniform(size[3], size[2], seed=5) < 0.4
    mask[:1], mask[1:2] = True, False
    links = Links.of(mask)
    return *[links.taken(tensor) for tensor in connections(size, dtype)], links


def check_listed(device, size, dtype):
    steps, batch, inputs, outputs, slots = size
    weight, back, links = listed(size, compute_dtype(dtype))
    sequence = signal(steps + slots // 2, batch, inputs, dtype=dtype)
    dy = signal(steps, batch, outputs, dtype=compute_dtype(dtype))
    way = slots, "shift", "ieee", links
    check(device, "project", sequence, weight, back, steps, *way)
    check(device, "project_backward", dy, sequence, weight, back, len(sequence), *way)
    check(device, "project_backward", dy, sequence, None, back, steps, *way)
    record = signal(slots, batch, inputs, dtype=dtype)
    for pointer in {0, slots - 1}:
        check(device, "project_step", record, pointer, weight, back, links)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_listed_connections(device, tiny_tiles, size):
    check_listed(device, size, F32)


@pytest.mark.parametrize("dtype", [F64, BF16, F16], ids=str)
def test_listed_connections_of_every_dtype(device, dtype):
    check_listed(device, (5, 33, 7, 5, 4), dtype)


def test_listed_connections_whose_offsets_would_leave_int32(device):
    sequence, dy = signal(5, 32, 3), signal(5, 32, 2, seed=3)
    weight, _ = connections((5, 32, 3, 2, 5))
    back = torch.tensor([[70_000_000, 1, 0], [2, 100_000_000, 4]], dtype=torch.int32)
    near, links = back.where(back < 9, 8), Links.of(torch.ones(2, 3, dtype=torch.bool))
    weight, back, near = (links.taken(tensor) for tensor in (weight, back, near))
    for name, first, *others in (
        ("project", (sequence, weight), 5),
        ("project_backward", (dy, sequence, weight), 5),
    ):
        way = "shift", "ieee", links
        actual = by_kernel(device, "projection", name, *first, back, *others, 100_000_001, *way)
        # There is nothing further back than the five steps.
        wanted = by_reference("projection", name, *first, near, *others, 9, *way)
        for a, b in zip(actual.returned, wanted.returned, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
def test_one_step_reads_the_ring_around_its_end(device, dtype, on_device):
    size = _, batch, inputs, _, slots = SIZES[1]
    weight, back = connections(size, compute_dtype(dtype))
    record = signal(slots, batch, inputs, dtype=dtype)
    for pointer in range(slots):
        slot = torch.tensor(pointer) if on_device else pointer
        check(device, "project_step", record, slot, weight, back)
        oldest_first, way = record.roll(-pointer, 0), (1, slots, "shift", "")
        expected = reference.project(oldest_first, weight, back, *way)[0]
        actual = reference.project_step(record, pointer, weight, back)
        torch.testing.assert_close(actual, expected)


def test_edges_of_tiles_of_a_ring(device, tiny_tiles):
    steps, batch, inputs, outputs, slots = 1, 17, 5, 3, 4
    weight, back = connections((steps, batch, inputs, outputs, slots), F32)
    record = signal(slots, batch, inputs, dtype=F32)
    check(device, "project_step", record, 2, weight, back)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, digits", [("tf32", 3e-3), ("tf32x3", 1e-5), ("ieee", 1e-6)])
def test_precision_of_the_tensor_cores(device, precision, digits):
    size = steps, batch, inputs, _, slots = (20, 32, 64, 64, 5)
    weight, back = connections(size, F32)
    sequence = signal(steps + slots - 1, batch, inputs, dtype=F32)
    way = steps, slots, "gemm"
    wanted = reference.project(sequence.to(F64), weight.to(F64), back, *way, "ieee")
    arguments = (tensor.to(device) for tensor in (sequence, weight, back))
    actual = launch.project(*arguments, *way, precision).cpu().to(F64)
    assert (actual - wanted).abs().max() <= digits * wanted.abs().max()


def test_half_precision_weights_stay_in_float32(device):
    size = SIZES[1]
    weight, back = connections(size, F32)
    sequence = signal(size[0] + size[4] - 1, size[1], size[2], dtype=F16)
    way = size[0], size[4], "shift", "ieee"
    y = by_kernel(device, "projection", "project", sequence, weight, back, *way)
    assert y.returned[0].dtype == F32


def test_delays_whose_offsets_would_leave_int32(device):
    """In lines of 32 samples: 7e7 steps are more elements than an int32 counts."""
    sequence, dy = signal(5, 32, 3), signal(5, 32, 2, seed=3)
    weight, _ = connections((5, 32, 3, 2, 5))
    back = torch.tensor([[70_000_000, 1, 0], [2, 100_000_000, 4]], dtype=torch.int32)
    slots, way = 100_000_001, ("shift", "ieee")
    for name, *arguments in (
        ("project", sequence, weight, back, 5, slots, *way),
        ("project_backward", dy, sequence, weight, back, 5, slots, *way),
    ):
        actual = by_kernel(device, "projection", name, *arguments).returned
        # There is nothing further back than the five steps.
        near = [6 if a is slots else back.clamp(max=5) if a is back else a for a in arguments]
        expected = by_reference("projection", name, *near).returned
        torch.testing.assert_close(actual, expected)


def test_a_line_is_no_longer_than_its_places_are_counted(device):
    """Nothing is allocated before."""
    like = torch.empty(1, 17, 1, device=device)
    with pytest.raises(ValueError, match=r"fewer than 67108832 steps .* given 67108832; split"):
        room(like, 2**26 - 32, 32, 32)
