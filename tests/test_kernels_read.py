"""Kernels of the delayed read and its adjoints: against plain PyTorch and against the rules."""

import math

import pytest
import torch
from against import BF16, F16, F32, F64, FLOATING, by_kernel, by_reference, exact, tensors, uniform

from tritonsyn.launch import read as launch
from tritonsyn.launch.config import LaunchConfig, override_config
from tritonsyn.ops.common import implementation
from tritonsyn.testing import assert_close_as_torch, assert_identical
from tritonsyn.values import Reading, ReadRule, compute_dtype

MODES = ("previous", "nearest", "next", "linear", "expdecay")
COPIES = ("previous", "nearest", "next")  # their values are observations
RATED = ("expdecay", "alpha")
STEPS = (0.1, 0.3, 1.0, 1.3)
SAMPLES = pytest.mark.parametrize(
    ("count", "mode"), [(1, "linear"), (2, "expdecay"), (2, "alpha")],
    ids=["single-linear", "double-expdecay", "alpha"],
)  # fmt: skip
EACH = pytest.mark.parametrize(
    ("count", "mode"), [*((count, mode) for mode in MODES for count in (1, 2)), (2, "alpha")]
)


@pytest.fixture
def rows_together():
    """A time is located once for four rows, which is no divisor of how many share it."""
    config = LaunchConfig(32, num_warps=1, UNROLL=4)
    with override_config(config, "select_fwd_kernel", "select_bwd_kernel"):
        yield


def rule_of(mode="expdecay", step=1.3, slots=5, tolerance=0.0, overbound=None):
    return ReadRule(mode, step, step * (slots - 1), tolerance, overbound)


def records_of(count, slots, batch, synapses, dtype):
    return [(uniform(slots, batch, synapses, seed=i) * 4 - 2).to(dtype) for i in range(count)]


def rates_of(count, synapses, dtype, per_synapse=False):
    shape = (synapses,) if per_synapse else ()
    return [uniform(*shape, seed=80 + i).to(compute_dtype(dtype)) for i in range(count)]


def times(rows, synapses, selectors, rule, dtype=F32, seed=30):
    """Times inside and outside of the bounds, observations and NaN among them."""
    sel = (uniform(rows, synapses, selectors, seed=seed) * 1.4 - 0.2) * (rule.limit + rule.step)
    flat = sel.view(-1)
    flat[::5] = (flat[::5] / rule.step).round() * rule.step
    flat[3::11] = float("nan")
    flat[4::13] = rule.limit
    return sel.to(dtype)


def check(
    device, name, records, sel, rates, pointers, rule, *want,
    steps=1, first=(), identical=False, margin=64,
):  # fmt: skip
    """As accurate as PyTorch with the same times; the same where nothing is computed."""
    reading = Reading(sel, rates, pointers, rule, steps)
    call = (*first, records, reading, *want)
    actual = by_kernel(device, "read", name, *call, margin=margin)
    plain = by_reference("read", name, *call)
    # The times keep their dtype: it decides what counts as an observation.
    precise = reading._replace(rates=exact(rates))
    truth = by_reference("read", name, *exact(first), exact(records), precise, *want)
    scale = max((float(r.to(F64).abs().max()) for r in records if r.numel()), default=0.0)
    for a, t, p in zip(actual.returned, truth.returned, plain.returned, strict=True):
        if identical or not p.is_floating_point():
            assert_identical(a, p)
        else:
            assert_close_as_torch(a, t, p, scale=scale)
    start = len(list(tensors(first)))
    for i, (a, t, p) in enumerate(
        zip(actual.arguments, truth.arguments, plain.arguments, strict=True)
    ):
        if name == "select_backward" and start <= i < start + len(records):
            assert_close_as_torch(a, t, p, scale=2 * scale)
        else:
            assert_identical(a, p)


@EACH
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_modes_and_dtypes(device, mode, dtype, count):
    """Value, slopes and adjoint, in every dtype of the record."""
    rule = rule_of(mode, overbound=0.5)
    records, rates = records_of(count, 5, 1, 14, dtype), rates_of(count, 14, dtype)
    sel = times(1, 14, 2, rule, F64 if dtype == F64 else F32)
    pointers = [2, 0][:count]
    want_rates = mode in RATED
    check(
        device, "select", records, sel, rates, pointers, rule, True, want_rates,
        identical=mode in COPIES and count == 1,
    )  # fmt: skip
    dvalue = uniform(1, 14, 2, seed=60).to(dtype)
    check(device, "select_backward", records, sel, rates, pointers, rule, first=(dvalue,))


@pytest.mark.parametrize("mode", ["previous", "nearest"])
@pytest.mark.parametrize("overbound", [None, False, True])
def test_spikes(device, rows_together, mode, overbound):
    rule = rule_of(mode, overbound=overbound)
    record = uniform(5, 2, 4) < 0.5
    for rows in (1, 2):
        check(device, "select", [record], times(rows, 4, 9, rule), [None], [3], rule)


@pytest.mark.parametrize("sel_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_times_of_every_dtype(device, sel_dtype, mode):
    rule = rule_of(mode, step=0.3, overbound=0.0)
    records = records_of(1, 5, 2, 4, F32)
    sel = times(2, 4, 9, rule, sel_dtype)
    check(device, "select", records, sel, [None], [4], rule, identical=mode == "nearest")


@SAMPLES
@pytest.mark.parametrize(("slots", "overbound"), [(1, None), (2, 0.0), (5, -1.5), (5, None)])
def test_pointers_bounds_and_shared_times(device, rows_together, count, mode, slots, overbound):
    rule = rule_of(mode, slots=slots, overbound=overbound)
    records, rates = records_of(count, slots, 2, 6, F32), rates_of(count, 6, F32, True)
    dvalue = uniform(2, 6, 2, seed=60).float()
    for pointer in range(slots):
        sel = times(1 + pointer % 2, 6, 2, rule, seed=pointer)
        arguments = (sel, rates, [pointer, (pointer + 1) % slots][:count], rule)
        check(device, "select", records, *arguments, True, mode in RATED)
        check(device, "select_backward", records, *arguments, first=(dvalue,))


EDGES = [
    (1, 1, 1), (1, 32, 1), (2, 11, 3), (3, 33, 1), (1, 5, 13), (2, 35, 2), (0, 3, 2), (2, 0, 2),
    (2, 3, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "synapses", "selectors", "margin"), [*((*edge, 64) for edge in EDGES), (2, 11, 3, 3)]
)
def test_edges_of_tiles(device, small_tiles, batch, synapses, selectors, margin):
    rule = rule_of(overbound=0.5)
    records, rates = records_of(2, 5, batch, synapses, F32), rates_of(2, synapses, F32, True)
    sel = times(batch, synapses, selectors, rule)
    dvalue = uniform(batch, synapses, selectors, seed=60).float()
    arguments = (sel, rates, [1, 4], rule)
    check(device, "select", records, *arguments, True, True, margin=margin)
    check(device, "select_backward", records, *arguments, first=(dvalue,), margin=margin)


@SAMPLES
@pytest.mark.parametrize("rows", [(1,), (3,), (3, 1), (3, 3)], ids=str)
def test_a_sequence_is_read_at_every_step(device, rows_together, count, mode, rows):
    """At the same times, or at those of each step."""
    rule, steps = rule_of(mode, slots=3, overbound=0.0), 3
    # In float32, whose rounding the reference in float64 can judge.
    records, rates = records_of(count, 3 - 1 + steps, 3, 40, F32), rates_of(count, 40, F32)
    sel, pointers = times(math.prod(rows), 40, 1, rule, F32).view(*rows, 40, 1), [0] * count
    dvalue = uniform(steps * 3, 40, 1, seed=60).float()
    want = (True, mode in RATED)
    check(device, "select", records, sel, rates, pointers, rule, *want, steps=steps)
    arguments = (sel, rates, pointers, rule)
    check(device, "select_backward", records, *arguments, steps=steps, first=(dvalue,))


def test_slots_may_be_kept_on_the_device(device):
    rule = rule_of()
    records, rates = records_of(2, 5, 2, 4, F64), rates_of(2, 4, F64)
    arguments = (times(2, 4, 3, rule, F64), rates, [torch.tensor(0), torch.tensor(3)], rule)
    check(device, "select", records, *arguments, True, True)
    dvalue = uniform(2, 4, 3, seed=60)
    check(device, "select_backward", records, *arguments, first=(dvalue,))


def test_times_that_are_expanded_or_strided(device):
    """Also those of the steps of a sequence."""
    rule = rule_of("previous")
    record = records_of(1, 5, 3, 4, F32)[0].to(device)
    shared = times(1, 4, 2, rule).to(device)

    def select(sel):
        return launch.select([record], Reading(sel, [None], [1], rule))[0]

    expected = select(shared.repeat(3, 1, 1))
    actual = select(shared.expand(3, 4, 2))
    assert_identical(actual, expected)
    strided = shared.repeat(3, 1, 1).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert_identical(select(strided), expected)

    sequence = records_of(1, 5 + 2, 3, 4, F32)[0].to(device)
    for sel in (shared.expand(3, 1, 4, 2), strided.expand(3, 3, 4, 2), strided[:, None]):
        actual, expected = (
            launch.select([sequence], Reading(each, [None], [0], rule, 3))[0]
            for each in (sel, sel.expand(3, 3, 4, 2).contiguous())
        )
        assert_identical(actual, expected)
        dvalue, drecords = uniform(9, 4, 2).float().to(device), []
        for each in (sel, sel.expand(3, 3, 4, 2).contiguous()):
            drecords.append(torch.zeros_like(sequence))
            launch.select_backward(dvalue, drecords[-1:], Reading(each, [None], [0], rule, 3))
        assert_identical(*drecords)


def test_several_selectors_that_share_observations_all_count(device):
    """The adjoint adds up: every selector of every synapse hits the same slot."""
    rule = rule_of("previous", step=1.0)
    drecord = torch.zeros(5, 2, 3)
    reading = Reading(torch.full((1, 3, 7), 2.0), [None], [0], rule)
    arguments = (torch.ones(2, 3, 7), [drecord], reading)
    after = by_kernel(device, "read", "select_backward", *arguments).arguments[1]
    assert after[2].eq(7.0).all()
    assert not after[[0, 1, 3, 4]].any()


def test_batch_dot_of_groups(device):
    a, b = (uniform(3, 17, 5, seed=i) - 0.5 for i in (1, 2))
    for whole in (False, True):
        for call in (by_kernel, by_reference):
            where = (device,) if call is by_kernel else ()
            actual = call(*where, "read", "batch_dot", a, b, whole).returned[0].cpu()
            expected = (a * b).sum(1)
            torch.testing.assert_close(actual, expected.sum() if whole else expected)


@pytest.mark.parametrize(("batch", "columns", "dtype", "margin"), [
    (1, 1, F32, 64), (16, 32, F32, 64), (17, 33, F32, 64), (17, 33, F64, 64), (15, 3, F32, 3),
    (0, 4, F32, 64), (4, 0, F32, 64),
])  # fmt: skip
def test_batch_dot(device, small_tiles, batch, columns, dtype, margin):
    a, b = (uniform(batch, columns, seed=i).to(dtype) - 0.5 for i in (1, 2))
    for other, whole in ((b, False), (b, True), (b > 0, False)):
        actual = by_kernel(device, "read", "batch_dot", a, other, whole, margin=margin).returned[0]
        plain = by_reference("read", "batch_dot", a, other, whole).returned[0]
        truth = by_reference("read", "batch_dot", *exact((a, other)), whole).returned[0]
        # As many additions as rows, of products up to a quarter, or a half.
        scale = (0.25 if other is b else 0.5) * batch * (columns if whole else 1)
        assert_close_as_torch(actual, truth, plain, scale=scale)


# -- the rules of a read, independently of both implementations --------------------------------


def staircase(slots, dtype=F32):
    """A record ``[slots, 1, 1]`` whose pointer is 0 and whose value is the number of steps ago."""
    return torch.arange(slots - 1, -1, -1).to(dtype).view(slots, 1, 1)


def read(device, backend, rule, sel, slots, rate=None):
    """Values of the staircase at these times, on the CPU."""
    module = implementation("read", device, backend)
    record, sel = staircase(slots, compute_dtype(sel.dtype)).to(device), sel.to(device)
    rate = None if rate is None else torch.tensor(rate, dtype=record.dtype, device=device)
    (value,) = module.select([record], Reading(sel.view(1, 1, -1), [rate], [0], rule))
    return value.view(-1).cpu()


def neighbours(centres, reach):
    """The numbers up to ``reach`` units in the last place from each centre, ``[M, 2r + 1]``."""
    below, above = [centres], [centres]
    for _ in range(reach):
        below.append(torch.nextafter(below[-1], torch.full_like(centres, -math.inf)))
        above.append(torch.nextafter(above[-1], torch.full_like(centres, math.inf)))
    return torch.stack([*below[:0:-1], *above], -1)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [*((mode, F32) for mode in MODES), *(("linear", d) for d in (F64, BF16, F16))],
)
def test_multiples_of_the_step_read_that_many_steps_back(device, backend, step, mode, dtype):
    slots = 41
    rule = rule_of(mode, step, slots, overbound=-1.0)
    count = torch.arange(slots)
    # As a user computes them: by one rounding, in the dtype, and by adding up.
    rounded = (count.to(F64) * step).to(dtype)
    product = count.to(dtype) * torch.tensor(step, dtype=dtype)
    for sel in (rounded, product):
        value = read(device, backend, rule, sel, slots, rate=0.7)
        assert_identical(value, count.to(value.dtype))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_four_units_in_the_last_place_are_no_distance(device, backend, step, dtype):
    """Next to an observation a time reads it up to four units away, and not from ten on."""
    slots = 21
    rule = rule_of("previous", step, slots)
    count = torch.arange(1, slots - 1)
    # Observations as float64 knows them; the unit is that of the time, at least of the step.
    exactly = count.to(F64) * step
    sel = exactly.to(dtype)
    unit = torch.exp2(torch.floor(torch.log2(sel.to(F64)))) * torch.finfo(dtype).eps
    for offset in (-3, 0, 3):  # the time itself is half a unit off
        time = (exactly + offset * unit).to(dtype)
        assert read(device, backend, rule, time, slots).tolist() == count.tolist()
    for offset, older in ((-10, 0), (10, 1)):
        time = (exactly + offset * unit).to(dtype)
        assert read(device, backend, rule, time, slots).tolist() == (count + older).tolist()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.02])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("slots", [2, 40])
def test_cpu_and_kernel_read_the_same_slot(device, large_tiles, step, tolerance, dtype, slots):
    """Around every observation, every middle, every edge of the tolerance, and the bounds."""
    at = torch.arange(-1, slots + 1).to(F64) * step
    centres = [at, at + step / 2, at - tolerance, at + tolerance, at - 4e-7, at + 4e-7]
    sel = neighbours(torch.cat(centres).to(dtype), 8).view(1, 1, -1)
    record = staircase(slots, dtype) + 1
    for mode in ("previous", "nearest"):
        rule = rule_of(mode, step, slots, tolerance, overbound=-1.0)
        arguments = ([record], Reading(sel, [None], [0], rule))
        expected = by_reference("read", "select", *arguments).returned[0]
        assert_identical(by_kernel(device, "read", "select", *arguments).returned[0], expected)


def by_the_rules(rule, time, rate):
    """One read of the staircase, in float64, of a time that is not close to a decision."""
    bounded = min(max(time, 0.0), rule.limit)
    tolerance = max(rule.tolerance, 1e-6)
    if rule.overbound is not None and abs(time - bounded) > tolerance:
        return rule.overbound
    s = bounded / rule.step
    if abs(round(s) * rule.step - bounded) <= tolerance:
        s = round(s)
    older, newer = math.ceil(s), math.floor(s)
    a = (older - s) * rule.step
    return {
        "previous": older,
        "nearest": newer if a / rule.step > 0.5 else older,
        "next": newer,
        "linear": older + (newer - older) * a / rule.step,
        "expdecay": older * math.exp(-a / rule.step * rate),
    }[rule.mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [0.3, 1.3])
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
@pytest.mark.parametrize("overbound", [None, -1.0])
def test_reads_follow_the_rules(device, backend, mode, step, tolerance, overbound):
    slots, rate = 6, 0.7
    rule = rule_of(mode, step, slots, tolerance, overbound)
    sel = (uniform(300) * 1.4 - 0.2) * rule.limit
    # Where a decision is taken: halfway, and at the tolerance from an observation.
    phase = sel / step % 0.5 * step
    far = [(phase - edge).abs() > 1e-5 for edge in (0.0, tolerance, step / 2 - tolerance, step / 2)]
    sel = sel[torch.stack(far).all(0)]
    assert len(sel) > 250
    expected = [by_the_rules(rule, time, rate) for time in sel.tolist()]
    actual = read(device, backend, rule, sel, slots, rate)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64), rtol=1e-13, atol=1e-13)


def test_a_pair_follows_the_alpha_function(device, backend):
    """Value and slopes between two observations, in closed form; at the first, the current."""
    module, rule = implementation("read", device, backend), rule_of("alpha", 1.3, 2)
    rise, current, rate = 0.8, -0.3, 0.7
    later = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=F64)  # steps after the older observation
    sel = ((1 - later) * 1.3).view(1, 1, -1).to(device)
    # The newer observations lie in slot 0 and are read by no time but 0.
    records = [torch.tensor([[[9.0]], [[v]]], dtype=F64, device=device) for v in (rise, current)]
    given = torch.tensor(rate, dtype=F64, device=device)
    reading = Reading(sel, [given, given], [1, 1], rule)
    value, slope, *rate_slopes = module.select(records, reading, True, True)
    x = later * rate
    expected = (rise * x + current) * torch.exp(-x)
    torch.testing.assert_close(value.view(-1).cpu(), expected, rtol=1e-13, atol=1e-14)
    change = (rise - rise * x - current) * torch.exp(-x)  # for an x longer by one
    for actual, factor in ((slope, -rate / 1.3), (rate_slopes[0] + rate_slopes[1], later)):
        wanted = change * factor
        torch.testing.assert_close(actual.view(-1).cpu(), wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("slope", [False, True])
def test_at_an_observation_its_neighbours_do_not_count(device, backend, slope):
    """Whatever they hold, and whether or not the slope is wanted, which needs them."""
    rule, module = rule_of("linear", 1.0, 4), implementation("read", device, backend)
    record = torch.tensor([math.inf, 2.0, math.nan, 4.0], device=device).view(4, 1, 1)
    sel = torch.tensor([[[0.0, 2.0]]], device=device)
    value, *_ = module.select([record], Reading(sel, [None], [0], rule), slope)
    assert value.view(-1).tolist() == [4.0, 2.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("limit", "back"), [(3.0, None), (2.6 * (1 + 5e-7), 2), (2.6 * (1 - 5e-7), None)]
)
def test_a_limit_may_lie_between_observations(device, backend, mode, limit, back):
    """Or past the oldest one, as far as a delay may be from a whole number of steps."""
    slots, rate = math.ceil(limit / 1.3 - 1e-6) + 1, 0.7
    rule = ReadRule(mode, 1.3, limit)
    sel = torch.tensor([limit, limit + 1.0, limit - 1e-9], dtype=F64)
    expected = [back] * 3
    if back is None:
        expected = [by_the_rules(rule, min(time, limit), rate) for time in sel.tolist()]
    actual = read(device, backend, rule, sel, slots, rate)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overbound", [None, -1.0])
def test_nan_times_read_nan_and_no_spike(device, backend, mode, overbound):
    rule, module = rule_of(mode, overbound=overbound), implementation("read", device, backend)
    sel = torch.tensor([[[float("nan"), 1.3, -9.0]]], device=device)
    rate = torch.tensor(0.7, device=device)
    record = torch.ones(5, 1, 1, device=device)
    value, slope = module.select([record], Reading(sel, [rate], [0], rule), True)
    outside = 1.0 if overbound is None else overbound
    torch.testing.assert_close(
        value.view(-1).cpu(), torch.tensor([float("nan"), 1.0, outside]), equal_nan=True
    )
    assert slope.view(-1)[[0, 2]].tolist() == [0.0, 0.0]
    (spike,) = module.select([record.bool()], Reading(sel, [None], [0], rule_of("nearest")))
    assert spike.view(-1).tolist() == [False, True, True]


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("mode", ["linear", "expdecay"])
def test_slopes_at_observations_are_those_from_the_left(device, backend, slots, mode):
    """The older segment's slope, or the newer one's at the oldest observation; value over tau."""
    rule, module = rule_of(mode, 1.3, slots), implementation("read", device, backend)
    record = (uniform(slots, 1, 1) * 4 - 2).to(device)
    sel = (torch.arange(slots, dtype=F64) * 1.3).view(1, 1, -1).to(device)
    rate = torch.tensor(0.7, dtype=F64, device=device)
    _, slope = module.select([record], Reading(sel, [rate], [0], rule), True)
    ago = record.view(-1).cpu().flip(0)
    if mode == "expdecay":
        expected = ago * 0.7 / 1.3
    else:
        rises = ago.diff() / 1.3
        expected = torch.cat((rises, rises[-1:])) if slots > 1 else torch.zeros(1, dtype=F64)
    torch.testing.assert_close(slope.view(-1).cpu(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.gpu
def test_offsets_pass_the_range_of_int32(device):
    if torch.cuda.mem_get_info(device)[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    record = torch.zeros(3, 2, 2**29, dtype=torch.bool, device=device)
    record[0] = True
    sel = torch.full((1, 2**29, 1), 2.0, dtype=F16, device=device)
    rule = rule_of("previous", 1.0, 3)
    (value,) = launch.select([record], Reading(sel, [None], [0], rule))
    assert value.all()
    (value,) = launch.select([record], Reading(sel, [None], [2], rule))
    assert not value.any()
