"""The record against a plain Python list, and against inferno's where they agree."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synapses import gradcheck, spikes, uniform

import tritonsyn
from tritonsyn import RecordTensor, functional

F64 = torch.float64
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool]


def record_of(slots, shape=(2, 3), dtype=F64, device="cpu", **options):
    """A record of some slots one time unit apart, all zero, the pointer at 0."""
    value = torch.zeros(shape, dtype=dtype, device=device)
    return RecordTensor(1.0, float(slots), value, **options)


def observation(shape, seed, dtype=F64, device="cpu"):
    """A random observation without zeros, or random spikes."""
    if dtype == torch.bool:
        return spikes(*shape, seed=seed).to(device)
    return uniform(*shape, seed=seed, low=1.0, high=9.0).to(device=device, dtype=dtype)


def numbered(slots, shape=(2, 3), dtype=F64, device="cpu", **options):
    """A record whose observation ``o`` steps back is ``o`` everywhere; the pointer is not at 0."""
    record = record_of(slots, shape, dtype, device, **options)
    record.incr(slots // 2 + 1)
    for o in range(slots, 0, -1):
        record.push(torch.full(shape, float(o), dtype=dtype, device=device))
    return record


class Model:
    """What a record is: a list of observations, the newest last, and where that one lies."""

    def __init__(self, slots, first):
        self.past, self.pointer = [first] * slots, 0

    def incr(self, steps):
        turn = steps % len(self.past)
        self.past = self.past[turn:] + self.past[:turn]
        self.pointer = (self.pointer + steps) % len(self.past)

    def place(self, offset):
        return -(offset % len(self.past))  # -0 is the oldest

    def read(self, offset):
        return self.past[self.place(offset)]

    def write(self, value, offset):
        self.past[self.place(offset)] = value

    def offsets(self, length, offset, forward):
        """Offsets of a range in order of time."""
        first = offset if forward else offset + length - 1
        return [first - i for i in range(length)]

    def resize(self, slots):
        zero = torch.zeros_like(self.past[0])
        self.past = ([zero] * slots + self.past)[-slots:]
        self.pointer = 0


offsets = st.integers(-3, 12)
actions = st.one_of(
    st.tuples(st.just("push"), st.booleans()),
    st.tuples(st.just("push"), st.booleans()),
    st.tuples(st.just("write"), offsets, st.booleans()),
    st.tuples(st.just("incr"), offsets),
    st.tuples(st.just("decr"), offsets),
    st.tuples(st.just("pop")),
    st.tuples(st.just("latest")),
    st.tuples(st.just("writerange"), st.integers(1, 6), offsets, st.booleans(), st.booleans()),
    st.tuples(st.just("scatter"), st.integers(1, 6), offsets, st.booleans(), st.booleans()),
    st.tuples(st.just("extend"), st.integers(1, 6), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("align"), st.integers(0, 5)),
    st.tuples(st.just("reset"), st.sampled_from([0, 1, None])),
    st.tuples(st.just("resize"), st.integers(1, 6)),
)


def act(record, model, action, seed):
    """One action on the record and on its model."""
    slots, shape, dtype = record.recordsz, record.shape, record.value.dtype
    device = record.value.device
    value = observation(shape, seed, dtype, device)
    match action:
        case ("push", inplace):
            record.push(value, inplace=inplace)
            model.write(value, 0), model.incr(1)
        case ("write", offset, inplace):
            record.write(value, offset, inplace)
            model.write(value, offset)
        case ("incr", steps):
            model.incr(steps)
            assert record.incr(steps) == model.pointer
        case ("decr", steps):
            model.incr(-steps)
            assert record.decr(steps) == model.pointer
        case ("pop",):
            assert torch.equal(record.pop(), model.read(1))
            model.incr(-1)
        case ("latest",):
            record.latest = value
            model.write(value, 0), model.incr(1)
        case ("writerange", length, offset, forward, inplace):
            length = min(length, slots)
            block = observation((*shape, length), seed, dtype, device)
            record.writerange(block, offset, forward, inplace)
            for o, row in zip(
                model.offsets(length, offset, forward), block.unbind(-1), strict=True
            ):
                model.write(row, o)
        case ("scatter", length, offset, forward, inplace):
            length = min(length, slots)
            block = observation((*shape, length), seed, dtype, device)
            each = offset + (uniform(*shape, seed=seed, high=4.0)).long().to(device)
            record.writerange(block, each, forward, inplace)
            for o in each.unique().tolist():
                for p, row in zip(model.offsets(length, o, forward), block.unbind(-1), strict=True):
                    model.write(torch.where(each == o, row, model.read(p)), p)
        case ("extend", length, skipped, inplace):
            rows = observation((min(length, slots), *shape), seed, dtype, device)
            record.extend(rows, rows.shape[0] + skipped, inplace)
            model.incr(skipped)
            for row in rows:
                model.write(row, 0), model.incr(1)
        case ("align", index):
            record.align(index % slots)
            model.pointer = index % slots
        case ("reset", None):
            record.reset(None)
            model.pointer = 0
        case ("reset", fill):
            record.reset(fill)
            model.past, model.pointer = [torch.full_like(value, fill)] * slots, 0
        case ("resize", steps):
            record.duration = float(steps)
            if steps != slots:
                model.resize(steps)


def agree(record, model, seed):
    """All reads of the record are the model's."""
    slots = len(model.past)
    assert record.recordsz == slots and record.pointer == model.pointer
    assert torch.equal(record.peek(), model.read(1)) and torch.equal(record.latest, model.read(1))
    stored = [model.read(model.pointer - slot) for slot in range(slots)]
    assert torch.equal(record.value, torch.stack(stored))
    for offset in (0, 1, 2, slots, slots + 1, -1):
        assert torch.equal(record.read(offset), model.read(offset)), offset
    length, forward = 1 + seed % slots, bool(seed % 2)
    newest = [model.read(o) for o in range(length, 0, -1)]
    assert torch.equal(record.history(length), torch.stack(newest))
    for offset in (0, 1, slots - 1, slots + 2):
        expected = [model.read(o) for o in model.offsets(length, offset, forward)]
        assert torch.equal(record.readrange(length, offset, forward), torch.stack(expected, -1))
    each = uniform(*record.shape, seed=seed, low=-2.0, high=8.0).long().to(record.value.device)
    ranges = record.readrange(length, each, forward)
    for o in each.unique().tolist():
        expected = torch.stack([model.read(p) for p in model.offsets(length, o, forward)], -1)
        assert torch.equal(ranges[each == o], expected[each == o])


@given(st.integers(1, 6), st.lists(actions, max_size=12), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_programs_against_a_list(slots, program, dtype, ones):
    first = torch.full((2, 3), float(ones)).to(dtype)
    record, model = RecordTensor(1.0, float(slots), first), Model(slots, first)
    agree(record, model, 0)
    for seed, action in enumerate(program):
        act(record, model, action, seed)
        agree(record, model, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_program_on_every_backend(dtype, each_backend, device):
    program = [
        ("push", False), ("push", True), ("write", 2, False), ("pop",), ("latest",),
        ("writerange", 3, 1, True, False), ("push", False), ("scatter", 2, 0, False, True),
        ("extend", 3, 2, False), ("align", 2), ("extend", 4, 0, True),
        ("push", True), ("reset", None), ("resize", 6), ("push", False),
    ]  # fmt: skip
    first = torch.zeros(2, 3, dtype=dtype, device=device)
    record, model = RecordTensor(1.0, 4.0, first), Model(4, first)
    for seed, action in enumerate(program):
        act(record, model, action, seed)
        agree(record, model, seed)


# -- against inferno ------------------------------------------------------------------------------


def pair(slots, shape=(2, 3), dtype=F64):
    """Our record, inferno's with the same numbers, and its owner, which it holds weakly."""
    inferno = pytest.importorskip("inferno")
    owner = inferno.Module()
    inferno.RecordTensor.create(owner, "data", 1.0, float(slots), torch.zeros(shape, dtype=dtype))
    ours = record_of(slots, shape, dtype)
    for seed in range(slots + 2):
        value = observation(shape, seed, dtype)
        ours.push(value), owner.data.push(value)
    return ours, owner.data, owner


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bool])
@pytest.mark.parametrize("inplace", [False, True])
def test_reads_and_writes_against_inferno(dtype, inplace):
    ours, theirs, _owner = pair(5, dtype=dtype)
    for seed in range(20):
        value = observation((2, 3), seed, dtype)
        each = uniform(2, 3, seed=seed, low=0.0, high=6.0).long()
        length, offset, forward = 1 + seed % 4, seed % 7, seed % 3 == 0
        # They read ranges as long as the record as empty, and write them in another order.
        block = observation((2, 3, length), seed, dtype)
        match seed % 4:
            case 0:
                ours.push(value, inplace), theirs.push(value, inplace)
            case 1:
                ours.write(value, offset, inplace), theirs.write(value, offset, inplace)
            case 2:
                ours.writerange(block, offset, forward, inplace)
                theirs.writerange(block, offset, forward, inplace)
            case 3:
                ours.writerange(block, each, forward, inplace)
                theirs.writerange(block, each, forward, inplace)
        assert ours.pointer == theirs.pointer
        assert torch.equal(ours.value, theirs.value)
        assert torch.equal(ours.read(offset), theirs.read(offset))
        mine = ours.readrange(length, offset, forward)
        assert torch.equal(mine, theirs.readrange(length, offset, forward))
        mine = ours.readrange(length, each, forward)
        assert torch.equal(mine, theirs.readrange(length, each, forward))
    assert torch.equal(ours.pop(), theirs.pop()) and ours.pointer == theirs.pointer
    assert ours.incr(3) == theirs.incr(3) and ours.decr(6) == theirs.decr(6)
    ours.align(2), theirs.align(2)
    assert torch.equal(ours.value, theirs.value) and ours.pointer == theirs.pointer == 2
    ours.duration = theirs.duration = 7.0
    assert torch.equal(ours.value, theirs.value) and ours.recordsz == theirs.recordsz == 7
    ours.dt = theirs.dt = 2.0
    assert torch.equal(ours.value, theirs.value) and ours.recordsz == theirs.recordsz == 4
    ours.inclusive = theirs.inclusive = True
    assert ours.recordsz == theirs.recordsz == 5 and torch.equal(ours.value, theirs.value)
    ours.reset(1), theirs.reset(1)
    assert torch.equal(ours.value, theirs.value) and ours.pointer == theirs.pointer == 0


MODES = {
    "previous": {},
    "nearest": {},
    "next": {},
    "linear": {},
    "expdecay": {"time_constant": 3.0},
    "expratedecay": {"rate_constant": 0.4},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_select_against_inferno(mode, offset):
    functions = pytest.importorskip("inferno.functional")
    theirs_interp = getattr(functions, f"interp_{mode}")
    ours, theirs, _owner = pair(5)
    kwargs = {"interp_kwargs": MODES[mode], "offset": offset}
    for depth in ((), (1,), (4,)):
        time = uniform(2, 3, *depth, seed=1, high=4.0)
        mine = ours.select(time, mode, **kwargs)
        other = theirs.select(time, theirs_interp, **kwargs)
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-14)
    for time in (0.0, 1.0, 0.3, 2.7, 4.0, 1.0 + 1e-9):
        mine = ours.select(time, mode, **kwargs)
        other = theirs.select(time, theirs_interp, **kwargs)
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-14)


# -- what it is -----------------------------------------------------------------------------------


def test_properties(device):
    value = observation((2, 3), 1, device=device)
    record = RecordTensor(0.5, 2.0, value, inclusive=True)
    assert (record.dt, record.duration, record.inclusive) == (0.5, 2.0, True)
    assert (record.recordsz, record.shape, record.pointer) == (5, (2, 3), 0)
    assert torch.equal(record.value, value.expand(5, 2, 3))  # the first fills every slot
    assert record.value.device.type == device.type
    assert torch.equal(record.latest, value)
    record.latest = 2 * value
    assert record.pointer == 1 and torch.equal(record.latest, 2 * value)
    del record.latest
    assert record.pointer == 0 and torch.equal(record.latest, value)
    assert torch.equal(record.read(0), 2 * value)  # deleting moves the pointer only
    assert "5 slots of (2, 3)" in repr(record) and "pointer=0" in repr(record)


@pytest.mark.parametrize(
    ("dt", "duration", "exclusive"),
    [(1.0, 0.0, 1), (1.0, 1.0, 1), (1.0, 2.0, 2), (1.0, 2.5, 3), (0.1, 0.3, 3), (0.1, 0.7, 7),
     (0.1, 1.1, 11), (0.3, 6.0, 20), (1.0, 1e-9, 1), (3.0, 1.0, 1)],
)  # fmt: skip
def test_number_of_slots(dt, duration, exclusive):
    """``ceil(duration / dt)``, at least one; one more where the duration itself is included."""
    record = RecordTensor(dt, duration, torch.zeros(2))
    assert record.recordsz == exclusive
    record.inclusive = True
    inclusive = RecordTensor(dt, duration, torch.zeros(2), inclusive=True)
    assert record.recordsz == inclusive.recordsz
    whole = duration / dt < 1e-6  # nothing but the present is included
    assert inclusive.recordsz == (1 if whole else exclusive + 1)


def test_setters_keep_the_newest(device):
    record = numbered(5, device=device)

    def offsets_kept():
        return record.readrange(record.recordsz)[0, 0].tolist()

    record.duration = 3.0
    assert offsets_kept() == [3.0, 2.0, 1.0] and record.recordsz == 3
    record.duration = 5.0
    assert offsets_kept() == [0.0, 0.0, 3.0, 2.0, 1.0]
    record.dt = 2.5
    assert offsets_kept() == [2.0, 1.0] and record.dt == 2.5
    record.inclusive = True
    assert offsets_kept() == [0.0, 2.0, 1.0] and record.inclusive is True
    record.push(torch.full((2, 3), 9.0, dtype=F64, device=device))
    assert offsets_kept() == [2.0, 1.0, 9.0]


def test_setters_that_change_no_size_change_nothing(device):
    record = numbered(5, device=device)
    before, pointer = record.value.clone(), record.pointer
    record.dt, record.duration = 1.0, 4.5
    assert (record.dt, record.duration) == (1.0, 4.5)
    assert torch.equal(record.value, before) and record.pointer == pointer


def test_value_is_live_and_settable(device):
    record = record_of(3, device=device)
    live = record.value
    record.push(torch.ones(2, 3, device=device))
    assert (live[0] == 1).all()
    new = observation((3, 2, 3), 1, device=device)
    record.value = new
    assert torch.equal(record.value, new) and record.pointer == 1
    assert torch.equal(record.read(1), new[0])
    new.zero_()
    assert record.value.all()  # a copy was taken


def test_observations_go_in_as_copies_and_come_out_as_copies(device):
    value = torch.ones(2, 3, dtype=F64, device=device)
    record = RecordTensor(1.0, 3.0, value)
    record.push(value)
    value.zero_()
    assert record.value.all()
    for output in (record.peek(), record.read(2), record.readrange(3), record.pop()):
        output.zero_()
    assert record.value.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_convert_to_the_record_s_dtype(dtype, each_backend, device):
    """A bool record holds ``!= 0``; integers and other floats are converted."""
    record = record_of(3, (4,), dtype, device)
    for source in (torch.float32, torch.float64, torch.int64, torch.bool):
        value = torch.tensor([0, 1, 2, -3], device=device).to(source)
        record.push(value)
        assert torch.equal(record.peek(), value.to(dtype))
        record.write(value, 2)
        assert torch.equal(record.read(2), value.to(dtype))
    half = torch.tensor([0.0, 0.5, -0.25, 1e-30], dtype=F64, device=device)
    record.push(half)
    assert torch.equal(record.peek(), half.to(dtype))
    record.writerange(half.unsqueeze(-1), 1)
    assert torch.equal(record.peek(), half.to(dtype)) and record.value.dtype == dtype


def test_noncontiguous_and_expanded_observations(each_backend, device):
    record = record_of(3, (2, 3), device=device)
    base = observation((3, 2), 1, device=device)
    for value in (base.t(), base[:1].t().expand(2, 3), base.t().flip(0)):
        record.push(value)
        assert torch.equal(record.peek(), value)
    record.value = observation((2, 3, 3), 2, device=device).permute(2, 0, 1)
    record.push(base.t())
    assert torch.equal(record.peek(), base.t())


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 1), (2, 3, 4, 5)])
def test_any_shape(shape, each_backend, device):
    record = record_of(2, shape, device=device)
    value = observation(shape, 1, device=device)
    record.push(value)
    assert torch.equal(record.peek(), value)
    time = torch.ones(*shape, 2, dtype=F64, device=device)
    assert torch.equal(record.select(time), torch.zeros(*shape, 2, dtype=F64, device=device))
    assert torch.equal(record.select(0.0), value) and not record.select(1.0).any()


# -- select ---------------------------------------------------------------------------------------


def selected(record, time, mode, offset=1, tau=3.0, tolerance=1e-6):
    """The definition, element by element, for a record that is the same in all elements."""
    slots = record.recordsz
    steps = min(max(time, 0.0), record.dt * (slots - 1)) / record.dt
    if abs(round(steps) - steps) * record.dt <= tolerance:
        steps = float(round(steps))
    older, newer = (
        record.read(offset + whole(steps)).flatten()[0].item() for whole in (math.ceil, math.floor)
    )
    part = math.ceil(steps) - steps
    return {
        "previous": older,
        "next": newer,
        "nearest": newer if part > 0.5 else older,
        "linear": older + (newer - older) * part,
        "expdecay": older * math.exp(-part * record.dt / tau),
        "expratedecay": older * math.exp(-part * record.dt / tau),
    }[mode]


TIMES = [0.0, 0.2, 0.5, 0.7, 1.0, 1.4, 1.5, 2.0, 2.9999999, 3.0000001, 3.5, 4.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given_as", ["name", "NAME", "function", "wrapped"])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_select(mode, given_as, offset, device):
    """By name, by our function, and by a function that only wraps it."""
    function = getattr(functional, f"interp_{mode}")
    interp = {
        "name": mode,
        "NAME": mode.upper(),
        "function": function,
        "wrapped": lambda *args, **kwargs: function(*args, **kwargs),
    }[given_as]
    kwargs = {"expdecay": {"time_constant": 3.0}, "expratedecay": {"rate_constant": 1 / 3}}
    options = {"offset": offset, "interp_kwargs": kwargs.get(mode)}
    record = numbered(5, device=device)
    expected = torch.tensor([selected(record, t, mode, offset) for t in TIMES], dtype=F64)
    time = torch.tensor(TIMES, dtype=F64, device=device)
    read = record.select(time.expand(2, 3, len(TIMES)), interp, **options)
    assert read.shape == (2, 3, len(TIMES))
    expected = expected.expand_as(read).to(device)
    torch.testing.assert_close(read, expected, rtol=1e-13, atol=0)
    for i, t in enumerate(TIMES):
        one = record.select(t, interp, **options)
        assert one.shape == (2, 3)
        torch.testing.assert_close(one, expected[..., i], rtol=1e-13, atol=0)
        flat = record.select(torch.full((2, 3), t, dtype=F64, device=device), interp, **options)
        torch.testing.assert_close(flat, expected[..., i], rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_select_on_every_backend(mode, each_backend, device):
    record = numbered(5, device=device)
    time = torch.tensor(TIMES, dtype=F64, device=device).expand(1, 3, len(TIMES))
    kwargs = {"expdecay": {"time_constant": 3.0}, "expratedecay": {"rate_constant": 1 / 3}}
    read = record.select(time, mode, interp_kwargs=kwargs.get(mode))
    expected = torch.tensor([selected(record, t, mode) for t in TIMES], dtype=F64, device=device)
    torch.testing.assert_close(read, expected.expand(2, 3, -1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", ["nearest", "previous", "next"])
def test_select_of_spikes(mode, each_backend, device):
    record = record_of(4, (1, 2), torch.bool, device)
    for spike in ([1, 0], [0, 1], [0, 0], [1, 1]):
        record.push(torch.tensor([spike], device=device))
    time = torch.tensor([0.0, 0.4, 1.0, 1.6, 3.0], dtype=F64, device=device).expand(1, 2, 5)
    expected = {
        "previous": [[1, 0, 0, 0, 1], [1, 0, 0, 1, 0]],
        "next": [[1, 1, 0, 0, 1], [1, 1, 0, 0, 0]],
        "nearest": [[1, 1, 0, 0, 1], [1, 1, 0, 1, 0]],
    }[mode]
    function = getattr(functional, f"interp_{mode}")
    for interp in (mode, function, lambda *args: function(*args)):
        read = record.select(time, interp)
        assert read.dtype == torch.bool and read[0].int().tolist() == expected


def test_select_default_is_nearest(device):
    record = numbered(4, device=device)
    time = uniform(2, 3, 9, seed=1, high=3.0).to(device)
    assert torch.equal(record.select(time), record.select(time, "nearest"))


def test_select_tolerance(device):
    """Within it the observation is read; between observations the mode decides."""
    record = numbered(4, device=device)
    time = torch.tensor([1.04, 0.96, 1.06, 0.94], dtype=F64, device=device).expand(2, 3, 4)
    read = record.select(time, "previous", tolerance=0.05)
    assert read[0, 0].tolist() == [2.0, 2.0, 3.0, 2.0]
    assert record.select(time, "next", tolerance=0.05)[0, 0].tolist() == [2.0, 2.0, 2.0, 1.0]
    assert record.select(1.04, "previous", tolerance=0.05)[0, 0] == 2.0
    assert record.select(1.04, "previous", tolerance=0.0)[0, 0] == 3.0


def test_select_beyond_the_record(device):
    """A tensor's times read the limit; a NaN time gives NaN; a number is refused."""
    record = numbered(4, device=device)
    time = torch.tensor([-2.0, 3.7, math.nan], dtype=F64, device=device).expand(2, 3, 3)
    read = record.select(time, "previous")[0, 0]
    assert read[:2].tolist() == [1.0, 4.0] and read[2].isnan()
    assert record.select(3.0 + 1e-7, "previous")[0, 0] == 4.0
    for number in (-0.1, 3.1):
        with pytest.raises(ValueError, match=f"time must be within the record.*but is {number}"):
            record.select(number)


@pytest.mark.parametrize("tau", [3.0, torch.tensor(3.0), torch.tensor([1.0, 2.0, 4.0])])
def test_select_with_time_constants(tau, device):
    """A number, a tensor, or one for each element."""
    tau = tau.to(device) if isinstance(tau, torch.Tensor) else tau
    record = numbered(4, device=device)
    time = torch.full((2, 3), 0.75, dtype=F64, device=device)
    read = record.select(time, "expdecay", interp_kwargs={"time_constant": tau})
    expected = 2.0 * torch.exp(-0.25 / torch.as_tensor(tau, dtype=F64, device=device))
    torch.testing.assert_close(read, expected.expand(2, 3), rtol=1e-14, atol=0)
    read = record.select(time, "expratedecay", interp_kwargs={"rate_constant": 1 / tau})
    torch.testing.assert_close(read, expected.expand(2, 3), rtol=1e-7, atol=0)  # 1 / tau: float32


def test_select_with_a_time_constant_of_one_element(each_backend, device):
    record = numbered(3, device=device)
    times = torch.full((2, 3), 0.5, dtype=F64, device=device)
    tau = torch.tensor([3.0], dtype=F64, device=device)
    values = [
        record.select(times, "expdecay", interp_kwargs={"time_constant": value})
        for value in (tau, 3.0)
    ]
    assert torch.equal(*values)


def test_a_capturable_storage_stays_where_it_is(device):
    """A CUDA graph may hold its address; and its replays are not counted as writes."""
    record = numbered(3, device=device, capturable=True)
    address = record.storage.data_ptr()
    state = {name: value.clone() for name, value in record.state_dict().items()}
    record.push(observation((2, 3), 1, device=device))
    pushed = record.storage.clone()
    record.align(1)
    assert record.pointer == 1 and not torch.equal(record.storage, pushed)
    record.value = pushed
    assert torch.equal(record.storage, pushed)
    record.load_state_dict(state)
    assert torch.equal(record.storage, state["storage"])
    record.reset(0)
    assert record.storage.data_ptr() == address and not record.at_rest


def test_select_with_a_function_of_ones_own(device):
    """It gets both neighbours, the time since the older one, the step and its keywords."""
    record = RecordTensor(0.5, 2.0, torch.zeros(1, 2, dtype=F64, device=device))
    for value in (1.0, 2.0, 4.0, 8.0):
        record.push(torch.full((1, 2), value, dtype=F64, device=device))
    seen = {}

    def middle(prev_data, next_data, sample_at, step_time, *, weight):
        seen.update(prev=prev_data, next=next_data, at=sample_at, step=step_time)
        return weight * prev_data + (1 - weight) * next_data

    time = torch.tensor([[0.1, 1.3]], dtype=F64, device=device)
    read = record.select(time, middle, interp_kwargs={"weight": 0.25})
    assert seen["prev"].tolist() == [[4.0, 1.0]] and seen["next"].tolist() == [[8.0, 2.0]]
    torch.testing.assert_close(seen["at"].cpu(), torch.tensor([[0.4, 0.2]], dtype=F64))
    assert seen["step"] == 0.5 and read.tolist() == [[7.0, 1.75]]
    hit = torch.tensor([[0.5, 1.0]], dtype=F64, device=device)  # observations as they are
    assert record.select(hit, lambda older, *rest: older + 99.0).tolist() == [[4.0, 2.0]]


# -- gradients ------------------------------------------------------------------------------------


def test_gradients_through_writes_and_reads(each_backend, device):
    """A program of everything that keeps a graph; what was overwritten gets none."""

    def program(a, b, block):
        record = record_of(4, (1, 2), device=device)
        record.push(a)
        record.push(b * a)
        record.write(b, 2)  # replaces the first
        record.writerange(block, 0, True)
        record.push(record.peek() * record.read(2))
        record.write(torch.zeros_like(a), 1, inplace=False)
        record.extend(block.movedim(-1, 0), 3)
        record.align(1)
        return record.read(1), record.read(3), record.readrange(3), record.value.square()

    a, b = (observation((1, 2), seed, device=device).requires_grad_() for seed in (1, 2))
    block = observation((1, 2, 2), 3, device=device).requires_grad_()
    assert gradcheck(program, (a, b, block))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_select(mode, each_backend, device):
    """To the observations, to the times off the observations, and to the constants."""
    kwargs = {key: torch.tensor(value, dtype=F64) for key, value in MODES[mode].items()}
    constants = [value.to(device).requires_grad_() for value in kwargs.values()]

    def program(a, b, time, *constants):
        record = record_of(3, (1, 2), device=device)
        record.push(a), record.push(b), record.push(a * b)
        given = dict(zip(kwargs, constants, strict=True))
        first = record.select(time, mode, interp_kwargs=given)
        record.push(first[..., 0])
        return first, record.select(time, mode, interp_kwargs=given, offset=2)

    a, b = (observation((1, 2), seed, device=device).requires_grad_() for seed in (1, 2))
    time = torch.tensor([[[0.3, 1.2], [1.7, 0.9]]], dtype=F64, device=device, requires_grad=True)
    assert gradcheck(program, (a, b, time, *constants))


def test_gradients_of_select_with_a_function_of_ones_own(device):
    def program(a, b, time, scale):
        record = record_of(3, (1, 2), device=device)
        record.push(a), record.push(b), record.push(a * b)
        return record.select(
            time,
            lambda older, newer, at, dt, scale: older + (newer - older).square() * at * scale / dt,
            interp_kwargs={"scale": scale},
        )

    a, b = (observation((1, 2), seed, device=device).requires_grad_() for seed in (1, 2))
    time = torch.tensor([[[0.3, 1.2], [1.7, 0.9]]], dtype=F64, device=device, requires_grad=True)
    scale = torch.tensor(0.7, dtype=F64, device=device, requires_grad=True)
    assert gradcheck(program, (a, b, time, scale))


def test_gradient_of_a_range_with_tensor_offsets(device):
    each = torch.tensor([[0, 2]], device=device)

    def program(a, b, block):
        record = record_of(4, (1, 2), device=device)
        record.push(a), record.push(b)
        record.writerange(block, each, True)
        return record.readrange(3, each), record.readrange(2, each, True)

    a, b = (observation((1, 2), seed, device=device).requires_grad_() for seed in (1, 2))
    assert gradcheck(program, (a, b, observation((1, 2, 2), 3, device=device).requires_grad_()))


@pytest.mark.parametrize("then", ["push", "write", "read", "reset", "writerange", "align"])
def test_a_range_of_tensor_offsets_does_not_hold_the_record(then, each_backend, device):
    """Its backward needs none of the record's values, so that these may change before it."""
    record = numbered(4, device=device)
    obs = uniform(2, 3, low=1.0).to(device).requires_grad_()
    record.push(obs)
    offset = torch.tensor([[1, 2, 1], [2, 1, 3]], device=device)
    values = record.readrange(2, offset)
    {
        "push": lambda: record.push(torch.ones_like(obs)),
        "write": lambda: record.write(torch.ones_like(obs), 2),
        "read": lambda: record.read(1),
        "reset": lambda: record.reset(0),
        "writerange": lambda: record.writerange(torch.ones(2, 3, 2, dtype=F64, device=device)),
        "align": lambda: record.align(0),
    }[then]()
    values.sum().backward()
    assert torch.equal(obs.grad, (offset == 1).to(obs))


def test_gradients_of_the_storage_are_not_written_to(each_backend, device):
    """What a user hands in, or another operation shares, stays as it is."""
    x = torch.full((1, 2), 3.0, dtype=F64, device=device, requires_grad=True)
    for write in (
        lambda record: record.push(x),
        lambda record: record.extend(x.unsqueeze(0)),
        lambda record: (record.push(x), record.peek()),
        lambda record: (record.push(x), record.select(0.5, "linear")),
    ):
        record = record_of(2, (1, 2), device=device)
        write(record)
        given = torch.ones(2, 1, 2, dtype=F64, device=device)
        (dx,) = torch.autograd.grad(record.value, x, given, retain_graph=True)
        assert (dx == 1.0).all() and (given == 1.0).all()
        (dx,) = torch.autograd.grad(record.value.sum(), x)  # one number, expanded
        assert (dx == 1.0).all()


def test_inplace_drops_the_graph(device):
    """``inplace=True`` writes the values and leaves no graph; so do reset and no_grad."""
    x = torch.ones(2, 3, dtype=F64, device=device, requires_grad=True)
    block = x.unsqueeze(-1)
    for write in (
        lambda record: record.push(x, inplace=True),
        lambda record: record.write(x, 1, inplace=True),
        lambda record: record.writerange(block, 0, inplace=True),
        lambda record: record.reset(0.0),
        lambda record: record.detach_state(),
    ):
        record = record_of(3, device=device)
        record.push(x)
        assert record.value.requires_grad and record.peek().requires_grad
        write(record)
        assert not record.value.requires_grad and not record.peek().requires_grad
    with torch.no_grad():
        record.push(x)
    assert not record.value.requires_grad


def test_earlier_outputs_stay_differentiable(device):
    """What was read keeps its gradient after the slot was overwritten in place."""
    record = record_of(1, device=device)
    x = torch.full((2, 3), 3.0, dtype=F64, device=device, requires_grad=True)
    record.push(x)
    first = record.peek().square()
    record.push(torch.zeros(2, 3, device=device))
    (dx,) = torch.autograd.grad(first.sum(), x)
    assert (dx == 6.0).all()


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"step_time": 0.0}, ValueError, "step_time must be greater than 0, but is 0.0"),
        ({"step_time": math.nan}, ValueError, "step_time must be finite, but is nan"),
        ({"duration": -1.0}, ValueError, "duration must be at least 0, but is -1.0"),
        ({"duration": math.inf}, ValueError, "duration must be finite, but is inf"),
        ({"duration": "1"}, TypeError, "duration must be a number, but is '1'"),
        ({"value": 1.0}, TypeError, "value must be a tensor, but a float was given"),
        ({"value": torch.zeros(2, dtype=torch.int64)}, TypeError, "value is torch.int64, but"),
        (
            {"value": torch.zeros(2, dtype=torch.complex64)},
            TypeError,
            "floating, but is torch.complex64",
        ),
        ({"value": torch.tensor(1.0)}, ValueError, "value has shape"),
        ({"backend": "cpu"}, tritonsyn.BackendError, "'cpu', but must be one of auto, triton"),
    ],
)
def test_construction_errors(change, error, words):
    arguments = {"step_time": 1.0, "duration": 3.0, "value": torch.zeros(2, 3), **change}
    with pytest.raises(error, match=re.escape(words)):
        RecordTensor(**arguments)


OBS, WIDE = torch.zeros(2, 3), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda r: r.push(WIDE), ValueError, "shape (3, 2), but must have (2, 3)"),
        (lambda r: r.push(OBS[0]), ValueError, "shape (3,), but must have (2, 3)"),
        (lambda r: r.push(1.0), TypeError, "must be a tensor, but a float was given"),
        (lambda r: r.push(OBS.to("meta")), ValueError, "is on meta, but the record is on cpu"),
        (lambda r: r.push(OBS.cfloat()), TypeError, "integer or floating, but is torch.complex64"),
        (lambda r: r.write(WIDE, 2), ValueError, "shape (3, 2), but must have (2, 3)"),
        (lambda r: setattr(r, "latest", WIDE), ValueError, "shape (3, 2), but must have (2, 3)"),
        (lambda r: setattr(r, "value", OBS), ValueError, "value has shape (2, 3), but must"),
        (lambda r: setattr(r, "value", 1), TypeError, "value must be a tensor, but a int"),
        (lambda r: setattr(r, "dt", 0), ValueError, "dt must be greater than 0, but is 0.0"),
        (lambda r: setattr(r, "duration", -1), ValueError, "must be at least 0, but is -1.0"),
        (lambda r: r.readrange(0), ValueError, "length must be in 1 to 4, but is 0"),
        (lambda r: r.readrange(5), ValueError, "length must be in 1 to 4, but is 5"),
        (lambda r: r.readrange(2, WIDE.long()), ValueError, "offset has shape (3, 2), but must"),
        (lambda r: r.readrange(2, OBS), TypeError, "offset must be integer, but is torch.float32"),
        (lambda r: r.writerange(OBS), ValueError, "(2, 3), but must have (2, 3, 'length')"),
        (lambda r: r.writerange(1.0), TypeError, "obs must be a tensor, but a float was given"),
        (lambda r: r.writerange(torch.zeros(3, 2, 1)), ValueError, "obs has shape (3, 2, 1), but"),
        (lambda r: r.writerange(torch.zeros(2, 3, 5)), ValueError, "length must be in 1 to 4, but"),
        (lambda r: r.writerange(torch.zeros(2, 3, 0)), ValueError, "length must be in 1 to 4, but"),
        (lambda r: r.align(4), IndexError, "index must be in 0 to 3, but is 4"),
        (lambda r: r.align(-1), IndexError, "index must be in 0 to 3, but is -1"),
        (lambda r: r.select(WIDE), ValueError, "time has shape (3, 2), but must have (1 or 2, 3)"),
        (lambda r: r.select(OBS.bool()), TypeError, "time must be floating or integer, but is"),
        (lambda r: r.align(1.0), TypeError, "index must be an integer, but is 1.0"),
        (lambda r: r.history("a"), TypeError, "length must be an integer, but is 'a'"),
        (lambda r: r.readrange(2.0), TypeError, "length must be an integer, but is 2.0"),
        (lambda r: r.readrange(2, "1"), TypeError, "offset must be an integer, but is '1'"),
        (lambda r: r.extend([[1.0]]), TypeError, "rows must be a tensor, but a list"),
        (lambda r: r.extend(OBS[None], 2.0), TypeError, "steps must be an integer, but is 2.0"),
        (lambda r: r.reset(torch.ones((), device="meta")), ValueError, "fill is on meta"),
        (lambda r: r.reset("a"), TypeError, "fill must be a number, but is 'a'"),
        (
            lambda r: r.select(0.5, "expdecay", interp_kwargs={"time_constant": 0}),
            ValueError, "time_constant must be greater than 0, but is 0",
        ),
        (lambda r: r.select("1"), TypeError, "time must be a number, but is '1'"),
        (lambda r: r.select(math.nan), ValueError, "time must be finite, but is nan"),
        (lambda r: r.select(OBS, "cubic"), ValueError, "interp must be one of previous, nearest"),
        (lambda r: r.select(OBS, tolerance=-1.0), ValueError, "tolerance must be at least 0"),
        (lambda r: r.select(OBS, "expdecay"), TypeError, "interp_kwargs must hold 'time_constant'"),
        (lambda r: r.select(OBS, "expratedecay"), TypeError, "must hold 'rate_constant'"),
    ],
)  # fmt: skip
def test_refused_calls_change_nothing(call, error, words):
    record = numbered(4)
    before, pointer = record.value.clone(), record.pointer
    with pytest.raises(error, match=re.escape(words)):
        call(record)
    assert torch.equal(record.value, before) and record.pointer == pointer
    assert (record.dt, record.duration) == (1.0, 4.0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_offsets_of_any_integer_dtype(dtype):
    record = RecordTensor(1.0, 299.0, torch.zeros(2, dtype=F64), inclusive=True)
    for step in range(450):
        record.push(torch.full((2,), float(step), dtype=F64))
    offset = torch.tensor([1, 4])
    expected = record.readrange(2, offset)
    assert torch.equal(record.readrange(2, offset.to(dtype)), expected)
    written = [numbered(5, (2,)) for _ in "ab"]
    for copy, o in zip(written, (offset, offset.to(dtype)), strict=True):
        copy.incr(3)
        copy.writerange(torch.full((2, 2), -1.0, dtype=F64), o)
    assert torch.equal(written[0].storage, written[1].storage)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda r: r.incr(1.5), TypeError, "pos must be an integer"),
        (lambda r: r.decr(float("nan")), TypeError, "pos must be an integer"),
        (lambda r: r.write(torch.zeros(2, 3), 1.5), TypeError, "offset must be an integer"),
        (lambda r: r.read(0.5), TypeError, "offset must be an integer"),
        (lambda r: r.select(1.0, offset=1.5), TypeError, "offset must be an integer"),
        (lambda r: r.history(5), ValueError, "length must be in 0 to 4"),
        (lambda r: r.extend(torch.zeros(2, 2, 3), steps=1), ValueError, "steps must be at least"),
        (lambda r: r.extend(torch.zeros(2, 2, 3) * 1j), TypeError, "rows must be bool"),
    ],
)
def test_refused_numbers_change_nothing(call, error, words):
    record = numbered(4)
    before = record.pointer, record.storage.clone()
    with pytest.raises(error, match=words):
        call(record)
    assert record.pointer == before[0] and torch.equal(record.storage, before[1])


def test_a_value_is_converted_to_the_record_s_dtype():
    record = numbered(3, dtype=torch.float32)
    record.value = torch.ones(3, 2, 3, dtype=torch.bool)
    assert record.storage.dtype == torch.float32 and record.storage.eq(1).all()


def test_more_steps_than_memory_could_hold():
    with pytest.raises(ValueError, match=r"duration of 1e\+30 is 1e\+30 steps of 1.0, but"):
        RecordTensor(1.0, 1e30, torch.zeros(2))


def test_at_an_observation_a_users_function_has_no_part_in_the_gradient():
    """Its slope may be infinite there."""
    record = record_of(3)
    record.push(observation((2, 3), seed=1))
    times = torch.tensor([[0.0, 1.0, 0.5]] * 2, dtype=F64, requires_grad=True)
    record.select(times, lambda old, new, at, step: old * (at / step).sqrt()).sum().backward()
    assert times.grad.isfinite().all()
    assert not times.grad[:, :2].any()


def test_a_range_for_each_element_keeps_no_record(device):
    """So a later write, read or reset leaves its backward pass alone."""
    record = RecordTensor(1.0, 3.0, torch.zeros(2, device=device), inclusive=True)
    x = torch.ones(2, device=device, requires_grad=True)
    record.push(x)
    record.push(2 * x)
    offset = torch.tensor([1, 2], device=device)
    y = record.readrange(1, offset)
    assert y.flatten().tolist() == [2.0, 1.0]
    record.push(x), record.peek(), record.reset()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [2.0, 1.0]


def test_unknown_keywords_of_a_known_mode(device):
    record = RecordTensor(1.0, 3.0, torch.zeros(2, device=device))
    with pytest.raises(TypeError, match=r"interp_kwargs of a known mode cannot hold \['tau'\]"):
        record.select(1.0, "nearest", interp_kwargs={"tau": 1.0})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_carry_follows_the_newest_observation(dtype, device):
    """Whatever writes it, or moves the pointer."""
    record = RecordTensor(
        1.0, 3.0, torch.zeros(2, dtype=dtype, device=device), inclusive=True, carried=True
    )
    values = [torch.full((2,), 0.1 * i, device=device) for i in range(1, 9)]
    writes = {
        "push": lambda v: record.push(v),
        "write": lambda v: record.write(v, 1),
        "latest": lambda v: setattr(record, "latest", v),
        "writerange": lambda v: record.writerange(torch.stack([v, v], -1), 1),
        "value": lambda v: setattr(record, "value", v.expand(4, 2)),
        "decr": lambda v: record.decr(),
        "pop": lambda v: record.pop(),
        "reset": lambda v: record.reset(0.3),
    }
    for value, write in zip(values, writes.values(), strict=True):
        write(value)
        assert (
            torch.equal(record.carry, record.peek().float()) and record.carry.dtype == torch.float32
        )
    record.extend(torch.stack(values[:3]))
    assert torch.equal(record.carry, values[2])  # unrounded
    record.write(values[4], 2)
    record.align(1)
    assert torch.equal(record.carry, values[2])


def test_more_rows_than_the_record_holds_are_refused(device):
    record = RecordTensor(1.0, 3.0, torch.zeros(2, device=device), inclusive=True)
    with pytest.raises(ValueError, match=r"rows has shape \(5, 2\), but must have .*L in 0 to 4"):
        record.extend(torch.ones(5, 2, device=device))
    assert record.pointer == 0 and not record.value.any()


def test_a_saved_carry_of_another_shape_is_refused(device):
    value = torch.zeros(2, dtype=torch.bfloat16, device=device)
    record = RecordTensor(1.0, 3.0, value, inclusive=True, carried=True)
    record.push(value + 1)
    state = record.state_dict()
    state["carry"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"carry.* \(3,\), but must be one observation"):
        record.load_state_dict(state)
    assert (record.peek() == 1).all()
