"""State as a tuple of tensors, taken out and put in."""

import copy
import pickle

import pytest
import torch
from synapses import CLASSES, PHYSICS, RECORDS, every_kind, gradcheck, make, same, snapshot, uniform

from tritonsyn import Delay, DelayedConv2d, DelayedLinear, RecordTensor, functional

F64, BF16 = torch.float64, torch.bfloat16
K = 4


def group(kind, batch=2, **options):
    return make(kind, 3, delay=K - 1.0, batch_size=batch, **{"dtype": F64, **options})


def layer(kind, **options):
    torch.manual_seed(1)
    synapse = CLASSES[kind].partialconstructor(*PHYSICS[kind].values())
    how = {"synapse": synapse, "delay": K - 1.0, "batch_size": 2, "dtype": F64, **options}
    return DelayedLinear(3, 2, 1.0, **how)


def convolution():
    torch.manual_seed(1)
    synapse = CLASSES["double"].partialconstructor(*PHYSICS["double"].values())
    return DelayedConv2d(3, 2, 2, 1.0, synapse=synapse, delay=K - 1.0, dtype=F64)


def delay(dtype=F64):
    return Delay(
        3, 1.0, delay=K - 1.0, delay_init=lambda d: d.fill_(1.5), batch_size=2, dtype=dtype
    )


MADE = {
    **{kind: lambda kind=kind: group(kind) for kind in CLASSES},
    "in place": lambda: group("single", inplace=True),
    "capturable": lambda: group("double", capturable=True),
    "half": lambda: group("alpha", dtype=BF16),
    "half, capturable": lambda: group("double", dtype=torch.float16, capturable=True),
    "layer": lambda: layer("alpha"),
    "delay": delay,
    "half delay": lambda: delay(BF16),
}


@pytest.mark.parametrize("name", MADE)
def test_another_module_goes_on_bit_for_bit(name):
    """Wherever its own pointer was."""
    first, other = MADE[name](), MADE[name]()
    x = uniform(9, 2, 3).to(BF16 if "half" in name else F64)
    with torch.no_grad():
        first.scan(x[:5])
        other.scan(x[:2])
        state = first.state()
        other.load_state(pickle.loads(pickle.dumps(state)))
        kept = copy.deepcopy(state)
        for t in (5, 6, 7):
            assert torch.equal(first(x[t]), other(x[t]))
        assert torch.equal(first.scan(x), other.scan(x))
    assert all(map(torch.equal, state, kept))  # which are copies
    assert all(map(torch.equal, first.state(), other.state()))


@every_kind
def test_what_a_state_is(kind):
    """The records in order of time, which are found under their names."""
    synapse = group(kind)
    synapse.scan(uniform(6, 2, 3))
    state = synapse.state()
    for name, part in zip(RECORDS[kind], state, strict=True):
        record = getattr(synapse, name)
        for offset in range(1, K + 1):
            assert torch.equal(part[K - offset], record.read(offset))
        assert part.untyped_storage().data_ptr() != record.value.untyped_storage().data_ptr()


def test_states_of_steps_become_a_batch():
    """As where a replay buffer is sampled."""
    one, many = group("double", batch=1), group("double", batch=2)
    states, x = [], uniform(6, 1, 3)
    for step in x:
        states.append(one.state())
        one(step)
    drawn = (4, 0, 2)
    joined = zip(*(states[i] for i in drawn), strict=True)
    many.load_state(tuple(torch.cat(parts, 1) for parts in joined))
    assert many.batchsz == 3
    y = many(x[[*drawn], 0])
    for i, t in enumerate(drawn):
        one.load_state(states[t])
        assert torch.equal(one(x[t])[0], y[i])


@pytest.mark.parametrize("name", ["single", "double", "alpha", "capturable", "layer", "delay"])
def test_gradients_flow_through_a_state(each_backend, name):
    """From the module it is loaded into, back to what made it."""
    first, second = MADE[name](), MADE[name]()
    x = uniform(2, 2, 3).requires_grad_()

    def run(x):
        first.clear()
        first(x[0])
        *parts, last = first.state()
        second.load_state((*(part * 2 for part in parts), last if parts else last * 2))
        return (second(x[1]), *(part for part in second.state() if part.requires_grad))

    if each_backend == "reference" or name == "double":
        assert gradcheck(run, (x,))


def test_in_place_no_graph_is_kept():
    synapse = group("single", inplace=True)
    given = torch.ones(K, 2, 3, dtype=F64, requires_grad=True)
    synapse.load_state((given, given > 0))
    assert not synapse.current_.value.requires_grad
    assert torch.equal(synapse.current_.value, given)


def test_memory_stays_where_it_is():
    """Plans and CUDA graphs know it."""
    synapse = group("double", inplace=True)
    states = synapse.state(), (synapse(uniform(2, 3)), synapse.state())[1]
    places = [record.value.data_ptr() for record in synapse._records()]
    for state in states * 2:
        synapse.load_state(state)
        assert places == [record.value.data_ptr() for record in synapse._records()]
        expected = group("double", inplace=True)
        expected.load_state(state)
        assert torch.equal(synapse(uniform(2, 3)), expected(uniform(2, 3)))


def test_of_a_record():
    record = RecordTensor(1.0, 3.0, torch.zeros(2, 3), inclusive=True)
    for i in range(6):
        record.push(torch.full((2, 3), float(i)))
    (state,) = record.state()
    assert state[:, 0, 0].tolist() == [2.0, 3.0, 4.0, 5.0]
    record.load_state((state[:, :1] + 1,))
    assert record.shape == (1, 3)
    assert record.peek().unique().item() == 6.0
    record.load_state((state._neg_view(),))
    assert torch.equal(record.read(1), -state[-1])


def test_of_a_convolution_it_has_the_size():
    first, other, x = convolution(), convolution(), uniform(5, 2, 3, 4, 5)
    first.scan(x)
    state = first.state()
    assert state[0].shape == (K, 2, 4, 5, 3)
    other.load_state(tuple(part[:, 1:] for part in state))
    assert torch.equal(other(x[0, 1:]), first(x[0])[1:])
    for wrong in ([*state], state[:1], tuple(part.flatten(1, 3) for part in state), 3):
        with pytest.raises((TypeError, ValueError), match=r"^state "):
            other.load_state(wrong)
    with pytest.raises(ValueError, match=r"B, H, W, 3\), but has the shapes .*, 2, 4, 5, 2\)"):
        other.load_state(tuple(part[..., :2] for part in state))


@every_kind
def test_it_is_what_the_functional_form_takes(kind):
    module, x = layer(kind), uniform(6, 2, 3)
    module.scan(x)
    gain, decay, rise, ratio = coefficients(kind)
    *initial, spikes = module.state()
    y, final = functional.delayed_linear(
        x, module.weight, module.delay, decay=decay, rise=rise, ratio=ratio, gain=gain,
        step_time=1.0, max_delay=K - 1.0, initial=tuple(initial),
    )  # fmt: skip
    torch.testing.assert_close(module.scan(x), y)
    torch.testing.assert_close(module.state()[:-1], final)
    module.load_state((*final, x[-K:] != 0))


def coefficients(kind):
    dynamics = layer(kind).synapse.coefficients().dynamics
    decay, *rise = dynamics.decays
    return dynamics.gain, decay, rise[0] if rise else None, dynamics.coupling


S = torch.zeros(K, 2, 3, dtype=F64)
B = S > 0


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ([S, B], TypeError, r"must be a tuple of tensors \(current_, spike_\)"),
        (None, TypeError, "must be a tuple"),
        ((S,), ValueError, r"must have 2 tensors \(current_, spike_\), but has 1"),
        ((S, S), TypeError, r"\[1\] \(spike_\) must be torch.bool, but is torch.float64"),
        (
            (S.float(), B),
            TypeError,
            r"\[0\] \(current_\) must be torch.float64, but is torch.float32",
        ),
        (
            (S[1:], B),
            ValueError,
            r"\[0\] \(current_\) has shape \(3, 2, 3\), but must have \(4, B, 3\)",
        ),
        ((S, B[:, :1]), ValueError, r"\[1\] \(spike_\) has a batch of 1, but state\[0\] one of 2"),
        ((S[:, :0], B[:, :0]), ValueError, ".*has shape"),
        ((S[0], B[0]), ValueError, ".*has shape"),
        ((S, B[..., :2]), ValueError, r"\[1\] \(spike_\) has shape \(4, 2, 2\)"),
        ((S, B.to("meta")), ValueError, r"\[1\] \(spike_\) is on meta"),
        ((S, "x"), TypeError, r"\[1\] \(spike_\) must be a tensor"),
        ((S.to_sparse(), B), TypeError, ".*must be dense"),
    ],
)
def test_wrong_states(state, error, words):
    for module in (group("single"), layer("single")):
        module.scan(uniform(5, 2, 3))
        before = snapshot(module)
        with pytest.raises(error, match="state ?" + words):
            module.load_state(state)
        assert same(before, snapshot(module))


def test_refused_on_a_tape():
    module = layer("single")
    state = module.state()
    with module.unrolled(3):
        module(uniform(2, 3))
        for call in (module.state, lambda: module.load_state(state)):
            with pytest.raises(RuntimeError, match="on a tape"):
                call()
    module.load_state(state)


def test_compiled():
    eager, compiled = (group("double", capturable=True) for _ in "ab")

    def turn(synapse, x, state):
        synapse.load_state(state)
        return synapse(x), synapse.state()

    run = torch.compile(lambda x, state: turn(compiled, x, state), fullgraph=True, backend="eager")
    state = group("double").state()
    for x in uniform(3, 2, 3):
        expected, state_after = turn(eager, x, state)
        y, state = run(x, state)
        torch.testing.assert_close((y, state), (expected, state_after), rtol=1e-14, atol=0)
