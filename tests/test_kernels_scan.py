"""Kernels of the scan, its adjoint and its constants' gradients against plain PyTorch."""

import pytest
import torch
from against import F32, F64, FLOATING, by_kernel, by_reference, exact, tensors, uniform

from tritonsyn.launch.config import LaunchConfig, override_config
from tritonsyn.reference.scan import pack
from tritonsyn.testing import assert_close_as_torch
from tritonsyn.values import Dynamics, PackedSpikes, Ring, compute_dtype

STATES = {"single": 1, "double": 2, "alpha": 2}
KINDS = pytest.mark.parametrize("kind", STATES)
CHUNKS = pytest.mark.parametrize("chunks", [1, pytest.param(2, marks=pytest.mark.slow), 3])
ROW = (2, 3)


def dynamics_of(kind, dtype, per_synapse=False):
    """Of constants that are one value, or one per synapse."""
    shape = ROW[1:] if per_synapse else ()
    values = [0.2 + 0.7 * uniform(*shape, seed=90 + i) for i in range(3)]
    gain, first, second = (value.to(compute_dtype(dtype)) for value in values)
    if kind == "alpha":
        return Dynamics(gain, (first,), second)
    return Dynamics(gain, (first, second)[: STATES[kind]])


def states_of(kind, dtype):
    return [uniform(*ROW, seed=i).to(compute_dtype(dtype)) for i in range(STATES[kind])]


def check(device, name, *arguments, block=32, chunks=1, scale=4.0):
    with override_config(LaunchConfig(block, num_warps=1, UNROLL=2, chunks=chunks)):
        actual = by_kernel(device, "scan", name, *arguments)
    plain = by_reference("scan", name, *arguments)
    truth = by_reference("scan", name, *exact(arguments))
    for a, t, p in zip(actual.returned, truth.returned, plain.returned, strict=True):
        assert_close_as_torch(a, t, p, scale=scale)


@KINDS
@CHUNKS
@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("at_rest", [False, True])
def test_scan(device, kind, chunks, steps, at_rest):
    x = uniform(steps, *ROW, seed=50).to(F32)
    initials = [None] * STATES[kind] if at_rest else states_of(kind, F32)
    for last, dtype in ((1, F32), (min(steps, 3), None)):
        check(device, "scan", x, dynamics_of(kind, F32), initials, last, dtype, chunks=chunks)


@KINDS
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_scan_takes_every_dtype(device, kind, dtype):
    x = uniform(4, *ROW, seed=50).to(dtype)
    dynamics = dynamics_of(kind, dtype, per_synapse=True)
    check(device, "scan", x, dynamics, states_of(kind, dtype), 2, dtype, chunks=2)


@KINDS
@pytest.mark.parametrize(("row", "block"), [(ROW, 32), ((3, 22), 128), ((1, 64), 64)])
def test_scan_takes_bits(device, kind, row, block):
    """Words of one element of a thread, of two that are the last of some, and of whole tiles."""
    spikes = uniform(5, *row, seed=50) < 0.5
    packed = PackedSpikes(pack(spikes.flatten(0, 1)).view(5, row[0], -1), (5, *row))
    dynamics = dynamics_of(kind, F64)
    with override_config(LaunchConfig(block, num_warps=1, UNROLL=2)):
        outcome = by_kernel(device, "scan", "scan", packed, dynamics, [None] * STATES[kind], 1, F64)
    truth = by_reference("scan", "scan", spikes, dynamics, [None] * STATES[kind], 1, F64)
    torch.testing.assert_close(outcome.returned, truth.returned)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, F32], ids=str)
def test_scan_of_whole_tiles(device, kind, dtype):
    """No mask but at the edge: two turns without and one with."""
    x = (uniform(7, 4, 32, seed=50) * 3 - 1).clamp(min=0).to(dtype)
    dynamics = dynamics_of(kind, F32)
    tails = [uniform(2, 4, 32, seed=60 + i).to(F32) for i in range(STATES[kind])]
    check(device, "scan", x, dynamics, [None] * STATES[kind], 2, F32, block=64)
    dy = uniform(7, 4, 32).to(F32)
    arguments = (dy, tails, None, dynamics, [None] * STATES[kind], F32, False)
    check(device, "scan_backward", *arguments, block=64, scale=8.0)


@KINDS
@CHUNKS
@pytest.mark.parametrize("per_synapse", [False, True])
@pytest.mark.parametrize("last", [0, 3])
def test_adjoint(device, kind, chunks, per_synapse, last):
    x, dy = (uniform(7, *ROW, seed=seed).to(F32) - 0.3 for seed in (50, 51))
    dtails = [None] * STATES[kind]
    if last:
        dtails = [uniform(last, *ROW, seed=60 + i).to(F32) for i in range(STATES[kind])]
    dynamics, initials = dynamics_of(kind, F32, per_synapse), states_of(kind, F32)
    scale = 16.0 if per_synapse else 16.0 * ROW[1]  # sums over synapses
    for source, dx_dtype, want_initials in ((x, F32, True), (None, F32, False), (x, None, False)):
        arguments = (dy, dtails, source, dynamics, initials, dx_dtype, want_initials)
        check(device, "scan_backward", *arguments, chunks=chunks, scale=scale)


@pytest.mark.parametrize(
    ("kind", "steps", "chunks"),
    [("values", 1, 1), ("values", 9, 1), ("values", 7, 2), ("spikes", 5, 1), ("bits", 9, 3)],
)
def test_adjoint_of_a_single_state(device, kind, steps, chunks):
    """With a gain of 0, too, and without an initial state, or the gradient to the input."""
    x, dy = (uniform(steps, *ROW, seed=seed).to(F32) - 0.3 for seed in (50, 51))
    x = x if kind == "values" else x > 0
    if kind == "bits":
        x = PackedSpikes(pack(x.flatten(0, 1)).view(steps, 2, 1), (steps, *ROW))
    for gain, per_synapse in ((1.3, False), (0.0, True)):
        dynamics = dynamics_of("single", F32, per_synapse)._replace(gain=torch.tensor(gain))
        for given in (
            (dy, [dy[-2:]], x, dynamics, states_of("single", F32), F32, True),
            (dy, [None], x, dynamics, [None], None, False),
        ):
            check(device, "scan_backward", *given, chunks=chunks, scale=32.0)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_adjoint_takes_every_dtype(device, dtype):
    """With the elements of whole programs, too, which need no masks."""
    x, dy = (uniform(5, 4, 8, seed=seed).to(dtype) - 0.3 for seed in (50, 51))
    initials = [x[0].to(compute_dtype(dtype))]
    arguments = (dy, [None], x, dynamics_of("single", dtype), initials, dtype, True)
    check(device, "scan_backward", *arguments, chunks=2, scale=16.0)


def test_gradients_of_constants_are_summed_as_exactly_as_by_torch(device):
    """Over many synapses; each has a term of the sum, and most of them cancel."""
    dy, y = (uniform(1, 64, 128, seed=seed).to(F32) - 0.5 for seed in (50, 51))
    dynamics, initials = dynamics_of("single", F32), [y[0]]
    arguments = (dy, [None], y, dynamics, initials, None, False)
    with override_config(LaunchConfig(512)):
        found = by_kernel(device, "scan", "scan_backward", *arguments).returned[-1]
    exactly = (dy[0].double() * y[0].double()).sum()
    error = (dy[0] * y[0]).sum().double() - exactly
    limit = max(2 * error.abs().item(), 1e-6 * (dy * y).abs().sum().item())
    assert (found.double() - exactly).abs().max() <= limit


@KINDS
@pytest.mark.parametrize("batch, x", [(1, F32), (33, "bits"), (64, torch.bool)], ids=str)
@pytest.mark.parametrize("chunks", [1, 3])
def test_scan_into_lines(device, kind, batch, x, chunks):
    """The ends of longer lines; beyond the batch they are zero."""
    values = uniform(7, batch, 3, seed=50) * 3 - 1
    sequence = (values > 0) if x == "bits" else values.to(x)
    if x == "bits":
        words = pack(sequence.flatten(0, 1)).view(7, batch, 1)
        sequence = PackedSpikes(words, (7, batch, 3))
    lines = torch.full((3, -(-batch // 32), 9, 32), 5.0, dtype=F32)
    dynamics = dynamics_of(kind, F32, per_synapse=True)
    states = [uniform(batch, 3, seed=i).to(F32) for i in range(STATES[kind])]
    arguments = (sequence, lines, dynamics, states, 3)

    def end(launcher, x, lines, *rest):
        return launcher(x, lines[:, :, 2:], *rest)

    with override_config(LaunchConfig(64, num_warps=1, UNROLL=2, chunks=chunks)):
        actual = by_kernel(device, "scan", "scan_lines", *arguments, call=end)
    plain = by_reference("scan", "scan_lines", *arguments, call=end)
    truth = by_reference("scan", "scan_lines", *exact(arguments), call=end)
    outcomes = [(*o.returned, o.arguments[1]) for o in (actual, truth, plain)]
    for found in zip(*outcomes, strict=True):
        assert_close_as_torch(*found, scale=16.0)
    beyond = torch.arange(32 * lines.shape[1]).view(-1, 1, 32) >= batch
    assert not actual.arguments[1][:, :, 2:].where(beyond, 0.0).any()


@KINDS
@pytest.mark.parametrize("steps", [2, 3, 8])
@pytest.mark.parametrize(
    ("how", "chunks"),
    [
        ("numbers", 1),
        ("on the device", 3),
        ("carried", 1),
        ("carried", 5),
        ("packed", 1),
        ("cut", 2),
        ("in lines", 1),
        ("in lines", 2),
    ],
)
def test_scan_into_rings(device, kind, steps, how, chunks):
    """Of three slots, from the newest values, to around the end; as the reference does it.

    In more chunks than the steps fill, too.
    """
    x = (uniform(steps, *ROW, seed=50) * 3 - 1).clamp(min=0).to(F32)
    if how == "packed":
        spikes = x > 0.5
        x = PackedSpikes(pack(spikes.flatten(0, 1)).view(steps, 2, 1), (steps, *ROW))
    dtype = torch.float16 if how == "carried" else F32
    records = [uniform(3, *ROW, seed=i).to(dtype) for i in range(STATES[kind])]
    carries = states_of(kind, F32) if how == "carried" else None
    pointers, arrivals = [2, 1, 0], None
    if how == "on the device":
        pointers, arrivals = [torch.tensor(p) for p in pointers], torch.zeros((), dtype=torch.int32)
    marks = torch.ones(3, *ROW, dtype=torch.bool)
    ring = Ring(records, pointers[: len(records)], marks, pointers[2], arrivals, carries)
    arguments = (x, ring, dynamics_of(kind, F32, per_synapse=True), dtype)
    if how == "in lines":
        arguments += (torch.full((ROW[1], 1, steps, 32), 5.0),)
    config = LaunchConfig(32, num_warps=1, UNROLL=2, chunks=chunks)
    with override_config(config, "exp_scan_kernel"):
        actual = by_kernel(device, "scan", "scan_ring", *arguments)
    expected = by_reference("scan", "scan_ring", *arguments)
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, e)


@KINDS
@pytest.mark.parametrize("steps", [1, 4, 101])
def test_reference_gradients(kind, steps):
    """Against differences, in float64; long sequences are filtered in blocks."""
    x = uniform(steps, *ROW, seed=50)
    dynamics = dynamics_of(kind, F64, per_synapse=True)
    from tritonsyn.ops.scan import scan

    leaves = [t.clone().requires_grad_() for t in (x, *dynamics.constants, *states_of(kind, F64))]
    count = len(dynamics.constants)

    def run(x, *rest):
        made = Dynamics.of(rest[:count], kind == "alpha")
        y, tails = scan(x, made, rest[count:], last=1, dtype=F64, backend="reference")
        return (y, *tails)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=steps > 100)
