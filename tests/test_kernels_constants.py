"""Kernels of the constants against plain PyTorch, and that against its own gradients."""

from itertools import product

import pytest
import torch
from against import BF16, F16, F32, F64, by_kernel, by_reference, exact, uniform

from tritonsyn import physics
from tritonsyn.launch.launcher import recording
from tritonsyn.reference.constants import coefficients, coefficients_backward
from tritonsyn.testing import assert_close_as_torch, assert_identical

STEP = 0.7
FLAGS = [flags for count in (2, 3) for flags in product((False, True), repeat=count)]
# Equal, almost equal, crossed, too short, too long, none.
FIRST = torch.tensor([3.0, 3.0, 2.0, -1.0, 4.0, 1e300, float("nan"), 5.0], dtype=F64)
SECOND = torch.tensor([3.0, 3.01, 6.0, 3.0, 0.0, 5.0, 5.0, float("nan")], dtype=F64)


def constants(flags, size=71, dtype=F64, hard=True):
    """A charge and time constants, one number or one for each synapse, some of them hard."""
    taus = [uniform(size, seed=i) * 3 + 2 for i in range(len(flags) - 1)]
    if hard and all(flags[1:]):
        for tau, values in zip(taus, (FIRST, SECOND), strict=False):
            tau[: len(values)] = values[:size]
    made = [uniform(size, seed=7) + 0.5, *taus]
    return [(c if each else c[-1]).to(dtype) for c, each in zip(made, flags, strict=True)]


def gradients(results, uses=1):
    """Random ones of gain, decays and rates, the last of which may be used several times."""
    every = [*results, *[results[-1]] * (uses - 1)]
    return [uniform(*r.shape, seed=i).to(r.dtype) - 0.3 for i, r in enumerate(every)]


def both_ways(device, charge, taus, dtype, wanted, uses=1, absent=()):
    """Results and gradients of the kernels, then those of the reference, made of its results."""
    results = by_reference("constants", "coefficients", charge, taus, STEP, dtype).returned
    given = [None if i in absent else d for i, d in enumerate(gradients(results, uses))]
    backward = ("constants", "coefficients_backward", given, results, charge, taus, STEP, dtype)
    forward = ("constants", "coefficients", charge, taus, STEP, dtype)
    kernels = [by_kernel(device, *call).returned for call in (forward, (*backward, wanted))]
    return [kernels[0] + kernels[1], [*results, *by_reference(*backward, wanted).returned]]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_gradients_are_those_of_the_expressions(flags):
    """The adjoint of the reference, written out, against autograd of what it differentiates."""
    charge, *taus = (c.requires_grad_() for c in constants(flags))
    gain, decays, rates = physics.coefficients(charge, taus, STEP, F64)
    uses = 3 if len(taus) == 1 else 1
    results = [gain, *decays, *rates]
    given = gradients(results, uses)
    every = [*results, *[rates[-1]] * (uses - 1)]
    expected = torch.autograd.grad(every, (charge, *taus), given)
    with torch.no_grad():
        wanted = [True] * len(flags)
        actual = coefficients_backward(given, results, charge, taus, STEP, F64, wanted)
        assert all(map(torch.equal, map(torch.nan_to_num, coefficients(charge, taus, STEP, F64)),
                       map(torch.nan_to_num, results)))  # fmt: skip
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_kernels_compute_what_the_reference_does(device, small_tiles, flags):
    charge, *taus = constants(flags)
    uses = 3 if len(taus) == 1 else 1
    actual, expected = both_ways(device, charge, taus, F64, [True] * len(flags), uses)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("given", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("flags", [(True, True), (False, True), (True, True, False)], ids=str)
def test_in_float32_as_exact_as_the_reference(device, given, flags):
    """Of constants in any dtype, whose gradients come back in it."""
    charge, *taus = constants(flags, 13, given, hard=False)
    actual, plain = both_ways(device, charge, taus, F32, [True] * len(flags))
    # Two components almost cancel, and their gain undoes the rounding of their decays.
    tolerance = {F64: 1e-6, F32: 1e-6, BF16: 1e-2, F16: 1e-3}
    for a, b in zip(actual, plain, strict=True):
        rtol = tolerance[a.dtype] if len(taus) == 1 else max(1e-4, tolerance[a.dtype])
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)
    decay, rate = actual[1], actual[1 + len(taus)]
    assert_close_as_torch(decay, torch.exp(-rate.to(F64)), plain[1])


def test_gradients_of_half_precision_constants_in_float64(device):
    charge, tau = constants((False, True), 13, BF16, hard=False)
    actual, plain = both_ways(device, charge, [tau], F64, [True, True])
    for a, b in zip(actual, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_gain_is_that_of_the_rounded_decays(device):
    """Of time constants so long that an ulp of a decay moves them by more than a percent."""
    charge, *taus = constants((True, True, True), hard=False)
    charge, taus = charge.to(F32), [tau.to(F32) * 5000 for tau in taus]
    gain, *decays = by_kernel(
        device, "constants", "coefficients", charge, taus, STEP, F32
    ).returned[:3]
    moved = physics.apart(*(tau.to(F64) for tau in taus), F32)
    expected = charge.to(F64) / physics.distance(moved, exact(decays), STEP)
    torch.testing.assert_close(gain.to(F64), expected, rtol=1e-6, atol=0)
    assert ((charge / (moved[0] - moved[1]) - gain).abs() / gain).max() > 1e-3


@pytest.mark.parametrize("count", [1, 2])
def test_any_gradient_may_be_absent_and_unwanted(device, count):
    charge, *taus = constants((True,) * (count + 1), hard=False)
    for absent in range(2 * count + 1):
        only = set(range(2 * count + 1)) - {absent}
        for missing, wanted in (
            ({absent}, [True] * count + [False]),
            (only, [False, *[True] * count]),
        ):
            actual, expected = both_ways(device, charge, taus, F64, wanted, absent=missing)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("given", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("size", [8 * 32, 8 * 32 + 1])
def test_sums_of_one_program_and_of_many(device, small_tiles, size, given):
    """Of tiles that one program goes through by itself, and of a tile more."""
    charge, *taus = constants((False, True, False), size, given, hard=False)
    wide = F32 if given == BF16 else given
    with recording(run=True) as launches:
        actual, expected = both_ways(device, charge, taus, wide, [True] * 3)
    assert launches[-1].grid == (1 if size == 8 * 32 else 9,)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol={F64: 1e-9, F32: 1e-4, BF16: 1e-2}[a.dtype], atol=0)


def test_runs_repeat_bit_for_bit_and_touch_nothing_else(device, small_tiles):
    charge, *taus = constants((False, True, False), 1111, F32, hard=False)
    runs = [both_ways(device, charge, taus, F32, [True] * 3)[0] for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert_identical(a, b)
