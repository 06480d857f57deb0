"""Records of every dtype: exact where it can be, else no worse than plain PyTorch allows.

The yardstick is the recurrence in plain PyTorch with float32 arithmetic and the state stored in the
dtype after each step; its error is measured against float64, and ours may be twice as large.
"""

import math

import pytest
import torch
from synapses import COMPONENTS, PHYSICS, every_kind, interpreted, make, spikes, uniform

F64 = torch.float64
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROUNDED = [torch.float32, torch.bfloat16, torch.float16]
INPUTS = [torch.bool, torch.uint8, torch.int64, *DTYPES]
STEPS, DT = 25, 0.5

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
rounded = pytest.mark.parametrize("dtype", ROUNDED, ids=lambda dtype: str(dtype)[6:])


def constants(kind):
    """Gain, and the time constant of each state."""
    charge, *taus = PHYSICS[kind].values()
    width = taus[0] - taus[1] if kind == "double" else taus[0]
    return charge / width, taus * 2 if kind == "alpha" else taus


def later(kind, states, time):
    """The states a time after they were these."""
    taus = constants(kind)[1]
    if kind == "alpha":
        states = [states[0], states[1] + time / taus[1] * states[0]]
    factors = [torch.exp(-torch.as_tensor(time).to(states[0]) / tau) for tau in taus]
    return [state * factor for state, factor in zip(states, factors, strict=True)]


def current_of(kind, states):
    return states[0] - states[1] if kind == "double" else states[-1]


def plain(kind, x, dtype):
    """Currents ``[T, B, N]`` and each component's history in plain PyTorch."""
    work = F64 if dtype == F64 else torch.float32
    gain, taus = constants(kind)
    states = [torch.zeros_like(x[0], dtype=dtype) for _ in taus]
    currents, histories = [], [[] for _ in taus]
    for x_t in x:
        new = later(kind, [state.to(work) for state in states], DT)
        for i in range(1 if kind == "alpha" else len(taus)):
            new[i] = new[i] + gain * x_t.to(work)
        states = [state.to(dtype) for state in new]
        for history, state in zip(histories, states, strict=True):
            history.append(state)
        currents.append(current_of(kind, states))
    return torch.stack(currents), [torch.stack(history) for history in histories]


def plain_read(kind, histories, sel):
    """Values ``[B, N, D]`` at times between the steps, from the histories."""
    dtype = histories[0].dtype
    work = F64 if dtype == F64 else torch.float32
    steps = sel.to(F64) / DT
    index = (len(histories[0]) - 1 - steps.ceil()).long()
    since = ((steps.ceil() - steps) * DT).to(work)
    older = [history.movedim(0, -1).gather(-1, index).to(work) for history in histories]
    return current_of(kind, later(kind, older, since)).to(dtype)


def run(synapse, x):
    return torch.stack([synapse(x_t) for x_t in x])


def needs_rounding(dtype):
    """Skips where bfloat16 is not rounded at all."""
    if dtype == torch.bfloat16 and interpreted():
        pytest.skip("Triton's interpreter cuts float32 off where bfloat16 is stored")


def assert_no_worse(ours, theirs, exact):
    """Largest and mean square error at most twice those of the yardstick."""
    errors = [(result.detach().to(F64) - exact).abs() for result in (ours, theirs)]
    floor = torch.finfo(ours.dtype).tiny  # both may be exact
    for measure in (torch.Tensor.max, lambda error: error.square().mean().sqrt()):
        mine, other = (measure(error) for error in errors)
        assert mine <= 2 * other + floor, (mine, other)


def task(seed=0):
    """Random spikes, and times between the last five steps."""
    x = spikes(STEPS, 2, 8, seed=seed, rate=0.3)
    sel = (uniform(2, 8, 3, seed=seed, high=4.0).floor() + uniform(2, 8, 3, low=0.2, high=0.8)) * DT
    return x, sel


@every_kind
@dtypes
def test_dtype_of_everything(kind, dtype, each_backend, device):
    """Outputs, state and reads are in the record's dtype; spikes are bool."""
    synapse = make(kind, 3, delay=1.0, dtype=dtype, device=device)
    y = synapse(torch.ones(1, 3, device=device))
    assert y.dtype == synapse.current.dtype == dtype
    for name in COMPONENTS[kind]:
        assert getattr(synapse, f"{name}_").value.dtype == dtype
    assert synapse.spike_.value.dtype == torch.bool
    for time in DTYPES:
        sel = torch.full((1, 3), 0.25, dtype=time, device=device)
        assert synapse.current_at(sel).dtype == dtype
        assert synapse.spike_at(sel).dtype == torch.bool


@every_kind
@rounded
def test_error_of_currents_and_delayed_reads(kind, dtype, each_backend, device):
    needs_rounding(dtype)
    x, sel = task()
    synapse = make(kind, 8, DT, delay=2.5, batch_size=2, dtype=dtype, device=device, inplace=True)
    y, read = run(synapse, x.to(device)).cpu(), synapse.current_at(sel.to(device)).cpu()
    currents, histories = plain(kind, x, dtype)
    exact_currents, exact_histories = plain(kind, x, F64)
    assert_no_worse(y, currents, exact_currents)
    assert_no_worse(read, plain_read(kind, histories, sel), plain_read(kind, exact_histories, sel))


@every_kind
@rounded
def test_error_of_the_gradients(kind, dtype, each_backend, device):
    """To the input, of a sum of currents and delayed reads, from autograd in each dtype."""
    needs_rounding(dtype)
    x, sel = task(2)
    steps = 10
    x, weights = x[:steps].double(), uniform(steps, 2, 8, seed=3)
    read_weights = uniform(2, 8, 3, seed=4)
    grads = []
    for d in (dtype, F64):
        given = x.to(d).requires_grad_()
        y, histories = plain(kind, given, d)
        loss = (y * weights.to(d)).sum() + (plain_read(kind, histories, sel) * read_weights).sum()
        grads.append(torch.autograd.grad(loss, given)[0])
    given = x.to(device=device, dtype=dtype).requires_grad_()
    synapse = make(kind, 8, DT, delay=2.5, batch_size=2, dtype=dtype, device=device)
    y, read = run(synapse, given), synapse.current_at(sel.to(device))
    loss = (y * weights.to(y)).sum() + (read * read_weights.to(device)).sum()
    (mine,) = torch.autograd.grad(loss, given)
    assert mine.dtype == dtype
    assert_no_worse(mine.cpu(), *grads)


@every_kind
@dtypes
@pytest.mark.parametrize("given", INPUTS, ids=lambda dtype: str(dtype)[6:])
def test_any_input_in_any_record(kind, dtype, given, device):
    """Small integers are exact in all of them, so the result is that of the record's dtype."""
    x = torch.tensor([[0, 1, 1, 0]], device=device)
    synapse, like = (make(kind, 4, dtype=dtype, device=device) for _ in range(2))
    for _ in range(2):
        assert torch.equal(synapse(x.to(given)), like(x.to(dtype)))
    assert torch.equal(synapse.spike, x.bool())


@dtypes
@pytest.mark.parametrize("given", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_gradients_have_the_dtype_of_what_they_belong_to(dtype, given, each_backend, device):
    synapse = make("double", 2, delay=2.0, dtype=dtype, device=device)
    exact = make("double", 2, delay=2.0, dtype=F64, backend="reference", device=device)
    grads = []
    for module, time in ((synapse, given), (exact, F64)):
        x = torch.ones(1, 2, dtype=time, device=device, requires_grad=True)
        sel = torch.full((1, 2), 0.5, dtype=time, device=device, requires_grad=True)
        module(x)
        module(x)
        grads.append(torch.autograd.grad(module.current_at(sel).float().sum(), (x, sel)))
    # A few roundings in the coarser of both dtypes, of terms that are at most 2.5.
    bound = 10 * max(torch.finfo(dtype).eps, torch.finfo(given).eps)
    for a, b in zip(*grads, strict=True):
        assert a.dtype == given
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


@pytest.mark.parametrize("time", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("step_time", [1.0, 0.1, 0.7])
def test_multiples_of_the_step_in_any_dtype_of_time(time, step_time, each_backend, device):
    """The tolerance follows the selector's dtype, whatever the record's is."""
    synapse = make("single", 1, step_time, delay=6 * step_time, dtype=F64, device=device)
    newest_first = torch.arange(7, dtype=F64, device=device) + 1
    synapse.current_.value = newest_first.flip(0).view(7, 1, 1)
    synapse.spike_.value = newest_first.flip(0).view(7, 1, 1) % 3 == 0
    sel = (torch.arange(7, dtype=F64) * step_time).to(device=device, dtype=time).view(1, 1, 7)
    assert torch.equal(synapse.current_at(sel).flatten(), newest_first)
    assert torch.equal(synapse.spike_at(sel).flatten(), newest_first % 3 == 0)


def test_default_dtype(device):
    """Without ``dtype=``, records are kept in PyTorch's default dtype."""
    assert make("single").current.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert make("single", device=device).current.dtype == F64
        assert make("double", device=device)(torch.ones(1, 3, device=device)).dtype == F64
    finally:
        torch.set_default_dtype(torch.float32)


@every_kind
@dtypes
def test_assignment_converts(kind, dtype, device):
    synapse = make(kind, 3, dtype=dtype, device=device)
    value = torch.tensor([[0.1, -2.3, 1e-3]], dtype=F64, device=device)
    for name in COMPONENTS[kind]:
        setattr(synapse, name, value)
        assert torch.equal(getattr(synapse, name), value.to(dtype))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of numpy, in the interpreter
def test_float16_overflows_to_infinity_like_pytorch(each_backend, device):
    """No wrap-around, no error: charges that large belong in another dtype."""
    synapse = make("single", 1, spike_charge=1e5, dtype=torch.float16, device=device)
    y = synapse(torch.full((1, 1), 10.0, device=device))
    assert y.item() == math.inf
    synapse.clear()
    assert synapse(torch.full((1, 1), 0.5, device=device)).item() == 10000.0
