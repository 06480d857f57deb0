"""Kernels of the taps against plain PyTorch: modes, dtypes, shared delays, bounds and edges."""

import pytest
import torch
from against import BF16, F16, F32, F64, by_kernel, by_reference, uniform

from tritonsyn.backend import interpreting
from tritonsyn.ops import taps
from tritonsyn.values import ReadRule

SIZES = [(1, 1), (5, 33), (17, 16), (19, 40)]
STEP, SLOTS = 0.7, 5
RULE = ReadRule("expdecay", STEP, 2.6, 1e-3)


def operands(size, delay_size, rates=((),), delay=F64, dtype=F64, acc=F64):
    """Weights, delays of which some are none, at a bound, at a step or outside, and rates."""
    delays = uniform(*delay_size, seed=1) * 3.2 - 0.2
    hard = torch.tensor([0.0, -0.1, 2.6, 2.7, STEP, float("nan")], dtype=F64)
    delays.view(-1)[: len(hard)] = hard[: delays.numel()]
    made = [uniform(*shape, seed=2 + i) + 0.2 for i, shape in enumerate(rates)]
    weight = uniform(*size, seed=5) - 0.5
    return weight.to(dtype), delays.to(delay), [rate.to(acc) for rate in made]


def check(device, arguments, tolerance, wanted, absent=None, **options):
    """Both passes against the reference."""
    call = ("taps", "taps", *arguments)
    expected = by_reference(*call).returned
    actual = by_kernel(device, *call, **options).returned
    gradients = [uniform(*w.shape, seed=9 + i).to(w.dtype) for i, w in enumerate(expected[1:])]
    if absent is not None:
        gradients[absent] = None
    call = ("taps", "taps_backward", gradients, *arguments, wanted)
    expected += by_reference(*call).returned
    actual += by_kernel(device, *call, **options).returned
    assert torch.equal(actual[0], expected[0])
    for a, b in zip(actual, expected, strict=True):
        rtol = max(tolerance, torch.finfo(b.dtype).eps) if b.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True)


def delay_sizes(size):
    return {(1, 1), (1, size[1]), (size[0], 1), size}


@pytest.mark.parametrize("lower", [0.0, 0.65])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_delays_of_connections_inputs_outputs_and_all(device, small_tiles, size, lower):
    for delay_size in delay_sizes(size):
        arguments = (*operands(size, delay_size), RULE, SLOTS, lower)
        check(device, arguments, 1e-12, [True] * 3, margin=64 if lower else 3)


@pytest.mark.parametrize("mode", ["expdecay", "alpha"])
@pytest.mark.parametrize("rates", [((), ()), ((33,), ()), ((33,), (33,))], ids=str)
def test_pairs(device, mode, rates):
    rule = RULE._replace(mode=mode, step=0.5)  # a power of two, by which nothing is divided
    weight, delay, rates = operands((5, 33), (5, 33), rates)
    check(device, (weight, delay, rates, rule, 7, 0.0), 1e-12, [True] * 4)
    arguments = (weight, delay.nan_to_num(), rates, rule, 7, 0.0)
    check(device, arguments, 1e-12, [False, True, True, False], absent=0)
    check(device, arguments, 1e-12, [True, False, False, True], absent=1)


@pytest.mark.parametrize(
    ("weight", "delay", "acc"),
    [
        (F32, F32, F32),
        (BF16, BF16, F32),
        (F16, F32, F32),
        (F32, F64, F32),
        (F64, F16, F64),
        (BF16, BF16, F64),
    ],
    ids=str,
)
def test_dtypes(device, weight, delay, acc):
    for lower in (0.0, 0.65):
        arguments = operands((5, 33), (5, 33), ((33,), ()), delay, weight, acc)
        check(device, (*arguments, RULE, SLOTS, lower), 2e-6, [True] * 4)


@pytest.mark.parametrize("lower", [0.0, 0.65])
def test_the_gradient_of_a_shared_delay_is_the_sum_of_those_it_stands_for(device, backend, lower):
    for delay_size in delay_sizes((4, 6)):
        weight, delay, rates = operands((4, 6), delay_size, ((), (6,)))
        leaves = [x.to(device).requires_grad_() for x in (weight, delay.nan_to_num(), *rates)]

        def tapped(weight, delay, *rates):
            made = taps(weight, delay, rates, RULE, SLOTS, lower, backend=backend)
            return [w.square().sum() for w in made.weights]

        shared = torch.autograd.grad(tapped(*leaves), leaves)
        whole = (leaves[0], leaves[1].expand(4, 6), *leaves[2:])
        for a, b in zip(shared, torch.autograd.grad(tapped(*whole), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
        assert not shared[1][(leaves[1] < lower) | (leaves[1] > RULE.limit)].any()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_a_delay_at_a_limit_that_its_dtype_rounds_up_has_a_gradient(device, dtype):
    rule = RULE._replace(limit=0.4257, step=0.1)
    delay = torch.tensor([[0.4257, 1.0, 0.1]]).to(dtype)
    assert delay[0, 0].item() > rule.limit
    weight, dweight = torch.ones(1, 3), torch.ones(1, 3)
    arguments = ([dweight], weight, delay, [torch.tensor(0.1)], rule, 6, 0.0, [False, True, False])
    found = [by_reference("taps", "taps_backward", *arguments)]
    if dtype == F16 or not interpreting():  # the interpreter cuts off what bfloat16 has no room for
        found.append(by_kernel(device, "taps", "taps_backward", *arguments))
    for (gradient,) in (outcome.returned for outcome in found):
        assert gradient.bool().tolist() == [[True, False, True]]
