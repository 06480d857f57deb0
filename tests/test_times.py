"""Times of delayed reads: one for all, with axes of one, and of each step."""

import pytest
import torch
from synapses import every_kind, gradcheck, make, spikes, uniform

from tritonsyn import RecordTensor, functional
from tritonsyn.functional import ReadRule

F64 = torch.float64
SIZE = (2, 2, 3)  # B, then the group
FORMS = {
    "integer": lambda: 2,
    "float": lambda: 1.7,
    "0-d": lambda: torch.tensor(0.4, dtype=F64),
    "all axes 1": lambda: uniform(1, 1, 1, high=4.0),
    "of a sample": lambda: uniform(2, 1, 1, high=4.0),
    "of a row": lambda: uniform(2, 2, 1, high=4.0),
    "of a column": lambda: uniform(1, 1, 3, high=4.0),
    "D of a sample": lambda: uniform(2, 1, 1, 4, high=4.0),
    "D of all": lambda: uniform(1, 1, 1, 4, high=4.0),
}
each_form = pytest.mark.parametrize("form", FORMS)


def full(times):
    """The same times, one or D for each element."""
    if not isinstance(times, torch.Tensor):
        return torch.full(SIZE, times, dtype=F64)
    return times.expand(*SIZE, *times.shape[3:]).contiguous()


def prepared(kind, **options):
    synapse = make(kind, SIZE[1:], delay=4.0, batch_size=2, dtype=F64, **options)
    synapse.scan(uniform(7, *SIZE, seed=1))
    return synapse


@every_kind
@each_form
def test_as_for_each_element(kind, form):
    synapse, times = prepared(kind), FORMS[form]()
    names = ["current_at", "spike_at"]
    names += ["pos_current_at", "neg_current_at"] if kind == "double" else []
    for name in names:
        expected = getattr(synapse, name)(full(times))
        assert torch.equal(getattr(synapse, name)(times), expected)
    x = uniform(2, *SIZE, seed=2)
    twin = prepared(kind)
    expected, actual = twin.scan_at(x, full(times)), synapse.scan_at(x, times)
    assert all(map(torch.equal, actual, expected))


@each_form
def test_as_for_each_element_elsewhere(form):
    times, synapse, twin = FORMS[form](), prepared("alpha"), prepared("alpha")
    with synapse.unrolled(2, times), twin.unrolled(2, full(times)):
        for x in uniform(2, *SIZE, seed=2):
            assert all(map(torch.equal, synapse(x), twin(x)))
    record = RecordTensor(1.0, 4.0, uniform(*SIZE), inclusive=True)
    record.push(uniform(*SIZE, seed=3))
    assert torch.equal(record.select(times, "linear"), record.select(full(times), "linear"))
    operands = (None,), (1,), ReadRule("linear", 1.0, 4.0)
    value, expected = (
        functional.select((record.value,), t, *operands)[0] for t in (times, full(times))
    )
    assert torch.equal(value, expected)


def test_a_shared_time_gets_the_sum_of_the_gradients(each_backend):
    synapse = prepared("double", inplace=True)
    for shape in ((), (1, 1, 1), (2, 1, 3, 2)):
        times = uniform(*shape, seed=4, high=3.9).requires_grad_()
        assert gradcheck(synapse.current_at, (times,))


def test_no_time_is_remembered():
    """Also where calls are planned."""
    synapse = prepared("single", inplace=True)
    shared = [torch.tensor(0.5, dtype=F64)] * 3, [torch.tensor(3.0, dtype=F64)]
    for times in (*[1.0] * 3, 2.5, *uniform(3, *SIZE, high=4.0), *shared[0], *shared[1], 1.0):
        each = full(times) if isinstance(times, float) else times.expand(SIZE).clone()
        assert torch.equal(synapse.current_at(times), prepared("single").current_at(each))


PER_STEP = {
    "one": lambda: uniform(5, seed=6, high=4.2),
    "of a sample": lambda: uniform(5, 2, 1, 1, seed=6, high=4.2),
    "of a synapse": lambda: uniform(5, 1, 2, 3, seed=6, high=4.2),
    "of all": lambda: uniform(5, 2, 2, 3, seed=6, high=4.2),
    "D of a row": lambda: uniform(5, 1, 2, 1, 2, seed=6, high=4.2),
}
each_step = pytest.mark.parametrize("form", PER_STEP)


@every_kind
@each_step
def test_times_of_each_step(kind, form):
    """A scan reads at step t what a loop of steps would read at the times of step t."""
    times, x, loop = PER_STEP[form](), spikes(5, *SIZE), prepared(kind)
    y, delayed = prepared(kind).scan_at(x, times, per_step=True)
    for t in range(5):
        torch.testing.assert_close(y[t], loop(x[t]), rtol=1e-12, atol=0)
        torch.testing.assert_close(delayed[t], loop.current_at(times[t]), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "form"), [("single", "one"), ("double", "D of a row"), ("alpha", "of all")]
)
def test_times_of_each_step_get_their_gradient(kind, form):
    """So do the input, the constants, and what was recorded before."""
    times, x = PER_STEP[form]()[:2].requires_grad_(), uniform(2, *SIZE, seed=7).requires_grad_()
    tau = torch.nn.Parameter(torch.tensor(3.5, dtype=F64))
    name = "tc_decay" if kind == "double" else "time_constant"
    synapse = make(kind, SIZE[1:], delay=4.0, batch_size=2, dtype=F64, **{name: tau})
    past = uniform(2, *SIZE, seed=8).requires_grad_()

    def run(times, x, past):
        synapse.clear()
        synapse.scan(past)
        return synapse.scan_at(x, times, per_step=True)[1]

    assert gradcheck(run, (times, x, past))
    with torch.no_grad():
        step = 1e-6
        results = []
        for sign in (1, -1):
            tau.add_(sign * step)
            results.append(run(times, x, past))
            tau.sub_(sign * step)
    run(times, x, past).sum().backward()
    slope = (results[0] - results[1]).sum() / (2 * step)
    torch.testing.assert_close(tau.grad, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("times", "error", "words"),
    [
        (1.0, TypeError, "tensor of times for each step, but a float was given"),
        (torch.tensor(1.0), ValueError, r"has shape \(\), but must have \(5, 1 or 2, 2, 3\)"),
        (torch.ones(4), ValueError, r"has shape \(4,\).*or \(5,\)"),
        (torch.ones(2, 2, 3), ValueError, r"has shape \(2, 2, 3\)"),
        (torch.ones(5, 2, 2), ValueError, r"has shape \(5, 2, 2\)"),
    ],
)
def test_wrong_times_of_each_step(times, error, words):
    synapse = prepared("single")
    before = synapse.current_.value.clone()
    with pytest.raises(error, match="selector .*" + words):
        synapse.scan_at(spikes(5, *SIZE), times, per_step=True)
    with pytest.raises(TypeError, match="per_step must be True or False, but is 'yes'"):
        synapse.scan_at(spikes(5, *SIZE), torch.ones(5), per_step="yes")
    assert torch.equal(synapse.current_.value, before)


def test_kernels_read_at_the_times_of_each_step(backend):
    times, x, results = uniform(2, 1, 2, 1, 2, high=4.2), uniform(2, *SIZE, seed=7), []
    for where in ("reference", backend):
        sel = times.clone().requires_grad_()
        y = prepared("double", backend=where).scan_at(x, sel, per_step=True)[1]
        results.append((y, *torch.autograd.grad(y.square().sum(), sel)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_no_steps_at_their_times():
    synapse = prepared("single")
    y, delayed = synapse.scan_at(torch.zeros(0, *SIZE), torch.zeros(0, *SIZE, 4), per_step=True)
    assert y.shape == (0, *SIZE)
    assert delayed.shape == (0, *SIZE, 4)
