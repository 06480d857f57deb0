"""Samples of several lengths in one sequence: each as if it had run alone."""

import pytest
import torch
from synapses import CLASSES, PHYSICS, every_kind, make, same, snapshot, spikes, uniform
from torch import nn

from tritonsyn import Delay, DelayedConv1d, DelayedLinear, RecordTensor, functional

F64 = torch.float64
STEPS, K = 7, 4
LENGTHS = (0, 7, 2, 5)
BATCH = len(LENGTHS)


def learned(kind):
    """The constants of a synapse, the last of them a parameter."""
    *others, last = PHYSICS[kind].items()
    return dict(others) | {last[0]: nn.Parameter(torch.tensor(last[1], dtype=F64))}


def group(kind, batch, **options):
    options = {"delay": K - 1.0, "dtype": F64, **options}
    return CLASSES[kind](3, 1.0, **learned(kind), batch_size=batch, **options)


def layer(kind, batch, **options):
    torch.manual_seed(1)
    synapse = CLASSES[kind].partialconstructor(*learned(kind).values())
    how = {"synapse": synapse, "delay": K - 1.0, "bias": True, "dtype": F64, **options}
    return DelayedLinear(3, 2, 1.0, batch_size=batch, **how)


def convolution(kind, batch, **options):
    torch.manual_seed(1)
    synapse = CLASSES[kind].partialconstructor(*learned(kind).values())
    how = {"synapse": synapse, "delay": K - 1.0, "bias": True, "dtype": F64, **options}
    return DelayedConv1d(1, 2, 2, 1.0, batch_size=batch, **how)


def state_of(module):
    """Its observations from the oldest on, and what it goes on from: ``[rows, B, N]``."""
    records = [part for part in module.modules() if isinstance(part, RecordTensor)]
    parts = [part for r in records for part in (r.history(K), r.newest().unsqueeze(0))]
    return torch.cat([part.to(F64) for part in parts])


def pieces(module, past, x, lengths=None, run=None):
    """Outputs and state after a sequence that goes on from another one."""
    if len(past):
        module.scan(past)
    result = module.scan(x, lengths) if run is None else run(module, x, lengths)
    outputs = result if isinstance(result, tuple) else (result,)
    return [*outputs, state_of(module)]


def together(made, past, x, lengths, run=None):
    module = made(BATCH)
    return pieces(module, past, x, lengths, run), list(module.parameters())


def alone(made, past, x, lengths, run=None):
    """The same of each sample by itself."""
    found, parameters = [], []
    for b, length in enumerate(lengths):
        module, own = made(1), slice(b, b + 1)
        *outputs, state = pieces(module, past[:, own], x[:length, own], None, run)
        rest = STEPS - length
        outputs = [torch.cat((y, y.new_zeros(rest, *y.shape[1:]))) for y in outputs]
        found.append([*outputs, state.view(len(state), 1, -1)])
        parameters.append(list(module.parameters()))
    return [torch.cat(parts, 1) for parts in zip(*found, strict=True)], parameters


def check(made, past, x, run=None, lengths=LENGTHS, **tolerance):
    """Values, states and gradients."""
    tolerance = tolerance or {"rtol": 1e-11, "atol": 1e-13}
    results, parameters = together(made, past, x, lengths, run)
    results[-1] = results[-1].view(len(results[-1]), BATCH, -1)
    expected, several = alone(made, past, x, lengths, run)
    torch.testing.assert_close(results, expected, **tolerance)
    given = [t for t in (past, x) if isinstance(t, torch.Tensor) and t.requires_grad]

    def gradients(values, *of):
        total = sum((v * uniform(*v.shape, seed=i)).sum() for i, v in enumerate(values))
        return torch.autograd.grad(total, of, materialize_grads=True)

    if results[0].requires_grad:
        wanted = gradients(expected, *given, *[p for each in several for p in each])
        shared = wanted[len(given) :]
        sums = [sum(shared[i :: len(parameters)]) for i in range(len(parameters))]
        actual = gradients(results, *given, *parameters)
        torch.testing.assert_close(actual, (*wanted[: len(given)], *sums), **tolerance)


def graded(steps, seed=0, synapses=3):
    return uniform(steps, BATCH, synapses, seed=seed, low=-1.0).requires_grad_()


@every_kind
@pytest.mark.parametrize("before", [0, 5])
def test_a_scan(kind, before):
    check(lambda batch: group(kind, batch), graded(before, 1), graded(STEPS, 2))


@every_kind
def test_a_scan_that_reads(kind):
    times = uniform(1, 3, 2, seed=5, high=K - 1.0)
    steps = uniform(STEPS, 1, 1, seed=5, high=K - 1.0)
    for run in (
        lambda m, x, lengths: m.scan_at(x, times, lengths=lengths),
        lambda m, x, lengths: m.scan_at(x, steps[: len(x)], per_step=True, lengths=lengths),
    ):
        check(lambda batch: group(kind, batch), graded(2, 1), graded(STEPS, 2), run)


@every_kind
@pytest.mark.parametrize("how", ["inplace", "capturable", "bool", "integer", "half", "no graph"])
def test_ways_of_a_scan(kind, how):
    past, x = spikes(3, BATCH, 3, seed=1), spikes(STEPS, BATCH, 3, seed=2)
    options, tolerance = {}, {}
    if how in ("inplace", "capturable"):
        options[how] = True
    elif how == "half":
        options["dtype"], x = torch.bfloat16, uniform(STEPS, BATCH, 3, seed=2)
        tolerance = {"rtol": 1e-6, "atol": 1e-6}  # that of the carries
    elif how == "integer":
        x = x * 2
    with torch.set_grad_enabled(how not in ("half", "no graph")):
        check(lambda batch: group(kind, batch, **options), past, x, **tolerance)


@pytest.mark.parametrize("capturable", [False, True])
def test_kernels(short_turns, capturable):
    x, results = spikes(STEPS, BATCH, 3, seed=2), []
    for backend in ("reference", "triton"):
        module = group("double", BATCH, backend=backend, capturable=capturable)
        *results_, state = pieces(module, spikes(3, BATCH, 3, seed=1), x, LENGTHS)
        loss = sum(part.square().sum() for part in (*results_, state))
        results.append([*results_, state, *torch.autograd.grad(loss, module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)


def test_packed_spikes_and_no_currents():
    past, x = spikes(3, BATCH, 3, seed=1), spikes(STEPS, BATCH, 3, seed=2)
    for run in (
        lambda m, x, lengths: m.scan(functional.pack_spikes(x), lengths),
        lambda m, x, lengths: (
            (m.advance(x, lengths), x[:0].double().sum())[1].view(1, 1, 1) + 0 * x
        ),
    ):
        check(lambda batch: group("double", batch), past, x, run)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("single", {"strategy": "shift"}),
        ("double", {"strategy": "gemm"}),
        ("alpha", {"strategy": "shift"}),
        ("double", {"strategy": "bits"}),
        ("single", {"strategy": "events"}),
        ("single", {"delays": "input"}),
        ("alpha", {"delays": "output"}),
        ("double", {"fan_in": 2}),
    ],
    ids=str,
)
def test_a_layer(kind, options):
    spiking = options.get("strategy") in ("bits", "events")
    past, x = graded(3, 1), graded(STEPS, 2)
    if spiking:
        past, x = spikes(3, BATCH, 3, seed=1), spikes(STEPS, BATCH, 3, seed=2)
    check(lambda batch: layer(kind, batch, **options), past, x)


@pytest.mark.parametrize("delays", ["connection", "input"])
def test_a_convolution(delays):
    past, x = (x[:, :, None] for x in (graded(3, 1), graded(STEPS, 2)))
    check(lambda batch: convolution("double", batch, delays=delays), past, x)


@pytest.mark.parametrize("interp", ["linear", "gaussian"])
def test_a_delay(interp):
    how = {"delay": K - 1.0, "interp": interp, "dtype": F64, "delay_init": lambda d: d.fill_(1.4)}
    check(lambda batch: Delay(3, 1.0, batch_size=batch, **how), graded(3, 1), graded(STEPS, 2))


def test_the_batch_may_come_first():
    x = uniform(STEPS, BATCH, 3)
    for made in (group, layer):
        expected = made("single", BATCH).scan(x, LENGTHS)
        y = made("single", BATCH, batch_first=True).scan(x.transpose(0, 1), LENGTHS)
        assert torch.equal(y.transpose(0, 1), expected)


def test_what_comes_after_the_end_does_not_count():
    """Neither its values nor, if they are no numbers, its gradients."""
    x = uniform(STEPS, BATCH, 3, seed=2)
    for t, b in ((t, b) for b, length in enumerate(LENGTHS) for t in range(length, STEPS)):
        x[t, b] = float("nan")
    x.requires_grad_()
    module = group("double", BATCH)
    y = module.scan(x, LENGTHS)
    assert y.isfinite().all()
    found = torch.autograd.grad(y.sum() + state_of(module).sum(), [x, *module.parameters()])
    assert all(part.isfinite().all() for part in found)
    assert not found[0][x.isnan()].any()


def test_lengths_as_they_may_be_given():
    x = uniform(STEPS, BATCH, 3)
    expected = group("single", BATCH).scan(x, list(LENGTHS))
    for lengths in (torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.uint8), LENGTHS):
        assert torch.equal(group("single", BATCH).scan(x, lengths), expected)
    synapse = group("single", BATCH)
    assert synapse.scan(x[:0], [0] * BATCH).shape == (0, BATCH, 3)
    assert not synapse.current_.value.any()


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2, 3], ValueError, r"has shape \(3,\), but must have \(4,\), one for each sample"),
        ([0, 1, 2, 8], ValueError, "must be in 0 to 7, but one is 8"),
        (torch.tensor([0, 1, -2, 3]), ValueError, "must be in 0 to 7, but one is -2"),
        ([1.0, 2, 3, 4], TypeError, "must be an integer, but is 1.0"),
        (torch.ones(4), TypeError, "must be dense and integer, but is torch.float32"),
        (torch.ones(4, dtype=torch.bool), TypeError, "must be dense and integer"),
        (torch.ones(4, dtype=torch.int64, device="meta"), ValueError, "is on meta"),
        (3, TypeError, "must be integers, one a sample, but is 3"),
    ],
)
def test_wrong_lengths(lengths, error, words):
    delay = Delay(3, 1.0, delay=K - 1.0, batch_size=BATCH)
    for module in (group("single", BATCH), layer("single", BATCH), delay):
        module.scan(spikes(2, BATCH, 3))
        before = snapshot(module)
        with pytest.raises(error, match="lengths " + words):
            module.scan(spikes(STEPS, BATCH, 3), lengths)
        assert same(before, snapshot(module))


def test_compiled():
    x, lengths = uniform(STEPS, BATCH, 3), torch.tensor(LENGTHS)
    eager, compiled = (
        make("double", 3, delay=3.0, batch_size=BATCH, capturable=True) for _ in "ab"
    )
    run = torch.compile(compiled.scan, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(run(x, lengths), eager.scan(x, lengths))
    assert same(snapshot(eager), snapshot(compiled))
