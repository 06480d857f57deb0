"""Times of delayed reads: one for all, with axes of one, and of each step."""

import pytest
import torch
from synapses import every_kind, gradcheck, make, uniform

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
