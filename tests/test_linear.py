"""The delayed dense layer against what it is defined by: delayed reads and a weighted sum."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from synapses import CLASSES, every_kind, gradcheck, interpreted, same, snapshot, spikes, uniform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tritonsyn
from tritonsyn import DelayedLinear, functional
from tritonsyn.functional import PackedSpikes, pack_spikes
from tritonsyn.launch import projection as project_launch
from tritonsyn.launch import spikes as spikes_launch
from tritonsyn.launch.launcher import recording
from tritonsyn.modules.projection import DelayedProjection
from tritonsyn.ops import Past, Run, Taps, choose, delayed, project_sequence
from tritonsyn.ops.strategy import Work, cheapest
from tritonsyn.values import Dynamics, SpikeTrains

F64 = torch.float64
BATCH, INPUTS, OUTPUTS, STEP, LONGEST = 2, 4, 3, 1.3, 3.7
DELAYS = [[0.0, 1.3, 3.7, -1.0], [2.6, 0.5, 9.0, 3.9], [3.1, 1.0, 2.0, 1.3]]
"""Whole, fractional, zero, longest and out of range."""
STRATEGIES = pytest.mark.parametrize("strategy", ["shift", "gemm", "bits", "events", "auto"])
OF_SPIKES = ("bits", "events")


def physics(kind, constants="number"):
    """A partial constructor with constants of this sort."""
    values = {"single": [2.0, 5.0], "double": [2.0, 6.0, 2.0], "alpha": [2.0, 3.0]}[kind]
    if constants == "each":
        values = [v * (1 + 0.1 * torch.arange(INPUTS, dtype=F64)) for v in values]
    elif constants == "learned":
        values = [torch.nn.Parameter(torch.tensor(v, dtype=F64)) for v in values]
    elif constants == "each learned":
        values = [torch.nn.Parameter(v + 0.1 * torch.arange(INPUTS, dtype=F64)) for v in values]
    return CLASSES[kind].partialconstructor(*values)


def layer_of(kind="single", constants="number", device=None, **options):
    settings = {
        "delay": LONGEST,
        "bias": True,
        "batch_size": BATCH,
        "dtype": F64,
        "weight_init": lambda t: uniform(*t.shape, seed=1, low=-1).to(t),
        "bias_init": lambda t: uniform(*t.shape, seed=2).to(t),
        "delay_init": lambda t: torch.tensor(DELAYS, dtype=F64).to(t),
    }
    synapse = physics(kind, constants)
    return DelayedLinear(
        INPUTS, OUTPUTS, STEP, synapse=synapse, device=device, **{**settings, **options}
    )


def materialised(layer, x):
    """Delayed reads of every connection, and their weighted sum, step after step."""
    found = []
    layer.synapse.backend = "reference"  # tested elsewhere, and quicker than the interpreter
    delays = layer.delay.clamp(0, layer.max_delay).t().unsqueeze(0)
    for row in x:
        layer.synapse(row)
        currents = layer.synapse.current_at(delays)
        found.append(torch.einsum("oi,bio->bo", layer.weight, currents) + layer.bias)
    return torch.stack(found)


def gradients(y, tensors):
    loss = (y * uniform(*y.shape, seed=9).to(y)).sum()
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def assert_same(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@every_kind
@STRATEGIES
@pytest.mark.parametrize("constants", ["number", "each", "learned", "each learned"])
def test_equals_delayed_reads_and_a_weighted_sum(device, each_backend, kind, strategy, constants):
    if interpreted() and (strategy == "auto" or constants in ("each", "learned")):
        pytest.skip("the kernels see the same as with the other values")
    if strategy in OF_SPIKES and "each" in constants:
        pytest.skip("sums of spikes need one time constant")
    layer = layer_of(kind, constants, device=device, strategy=strategy)
    oracle = copy.deepcopy(layer)
    x = spikes(7, BATCH, INPUTS).to(device)
    if strategy not in OF_SPIKES:
        x = x.to(F64)
    graded = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    y, wanted = layer.scan(graded[0]), materialised(oracle, graded[1])
    assert_same([y], [wanted])
    inputs = [[*layer.parameters(), *graded[:1]], [*oracle.parameters(), *graded[1:]]]
    if strategy in OF_SPIKES:
        inputs = [tensors[:-1] for tensors in inputs]
    assert_same(gradients(y, inputs[0]), gradients(wanted, inputs[1]))
    for a, b in zip(layer.synapse.children(), oracle.synapse.children(), strict=True):
        torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-12)
        assert a.pointer == b.pointer


@every_kind
def test_inplace_layers_have_the_same_gradients_whatever_the_strategy(device, each_backend, kind):
    """Through the taps alone: two sequences, of which the second starts from the first's state."""
    if interpreted() and kind == "single":
        pytest.skip("the others take its kernels, too")
    x = spikes(6, BATCH, INPUTS, seed=3).to(device)
    found = {}
    for strategy in ("shift", "gemm", "bits", "events"):
        layer = layer_of(kind, "learned", device=device, strategy=strategy)
        layer.synapse.inplace = True
        layer.scan(x[:3])
        layer.scan(x[3:]).square().sum().backward()
        assert not any(record.storage.requires_grad for record in layer.synapse.component_records())
        found[strategy] = {name: p.grad for name, p in layer.named_parameters()}
    shift = found.pop("shift")
    assert shift["weight"].any() and shift["delay"].any()
    for gradients_ in found.values():
        for name, wanted in shift.items():
            assert (gradients_[name] is None) == (wanted is None), name
            if wanted is not None:
                torch.testing.assert_close(gradients_[name], wanted, rtol=1e-12, atol=1e-12)


@every_kind
@STRATEGIES
@pytest.mark.parametrize("splits", [(9,), (1, 8), (3, 1, 5), (8, 0, 1)], ids=str)
def test_every_split_of_a_sequence_agrees(device, each_backend, kind, strategy, splits):
    """Also through the state: the gradients cross from one call into the one before."""
    if interpreted() and (splits != (3, 1, 5) or strategy == "auto"):
        pytest.skip("one split by each way is enough for the interpreter")
    if interpreted() and strategy in OF_SPIKES and kind != "alpha":
        pytest.skip("sums of spikes do not see the synapse, and alpha filters them by all kernels")
    x = spikes(9, BATCH, INPUTS, seed=3).to(device)
    layer = layer_of(kind, "learned", device=device, strategy=strategy)
    stepped = copy.deepcopy(layer)
    stepped.synapse.backend = "reference"
    y = torch.cat([layer.scan(part) for part in x.split(splits)])
    wanted = torch.stack([stepped(row) for row in x])
    assert_same([y], [wanted])
    pairs = zip(layer.named_parameters(), stepped.named_parameters(), strict=True)
    ours, theirs = zip(*((a, b) for (_, a), (_, b) in pairs), strict=True)
    assert_same(gradients(y, ours), gradients(wanted, theirs))
    assert layer.synapse.spike_.pointer == stepped.synapse.spike_.pointer


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, F64) for kind in CLASSES), ("alpha", torch.bfloat16)], ids=str
)
def test_sequences_in_lines_take_over_the_state(device, kind, dtype):
    """By the kernels, for a batch that fills lines: the end in the rings, and its gradients."""
    x = spikes(9, 17, INPUTS, seed=3).to(device)
    layers = [layer_of(kind, "learned", device=device, strategy="shift").to(dtype)]
    layers[0].delay.data.clamp_(max=3.0)  # the interpreter rounds the limit otherwise in bfloat16
    layers.append(copy.deepcopy(layers[0]))
    found = []
    for layer, backend in zip(layers, ("triton", "reference"), strict=True):
        layer.synapse.backend = backend
        parts = [layer.scan(part) for part in x.split((4, 5))]
        step = layer.synapse(x[0])  # from what the sequences left
        y = torch.cat([part.flatten().to(F64) for part in (*parts, step)])
        found.append([y, *gradients(y, list(layer.parameters())), *layer.synapse.buffers()])
        found[-1] += [record.value for record in layer.synapse.children()]
    for actual, expected in zip(*found, strict=True):
        tolerance = 1e-10 if dtype == F64 else 0.05
        scale = max(1.0, expected.abs().max().item()) if expected.is_floating_point() else 1.0
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@every_kind
def test_a_step_without_gradients_reads_the_ring(device, each_backend, kind):
    layer = layer_of(kind, device=device)
    stepped = copy.deepcopy(layer)
    stepped.synapse.backend = "reference"
    x = spikes(6, BATCH, INPUTS).to(device)
    with torch.no_grad():
        y = torch.stack([layer(row) for row in x])
    assert not y.requires_grad
    assert_same([y], [torch.stack([stepped(row) for row in x])])


@every_kind
@STRATEGIES
def test_gradients_against_finite_differences(device, each_backend, kind, strategy):
    """To weight, delay, learned constants, the initial state, and a graded input."""
    if interpreted() and strategy == "auto":
        pytest.skip("the kernels are those of the other strategies")
    slots, steps, batch = 3, 2 if interpreted() else 4, 1
    spiking = strategy in OF_SPIKES
    size = (2, 2)
    weight = uniform(*size, seed=1).to(device).requires_grad_()
    delay = torch.tensor([[0.2, 1.5], [2.3, 0.8]], dtype=F64, device=device).requires_grad_()
    constants = [torch.tensor(v, dtype=F64, device=device).requires_grad_() for v in (1.4, 0.8)]
    second = {"double": "rise", "alpha": "ratio"}.get(kind)
    if second is not None:
        constants.append(torch.tensor(0.6, dtype=F64, device=device).requires_grad_())
    initial = [
        uniform(slots, batch, 2, seed=5 + i).to(device).requires_grad_()
        for i in range(len(constants) - 1)
    ]
    x = spikes(steps, batch, 2).to(device)
    graded = [] if spiking else [uniform(steps, batch, 2, seed=8).to(device).requires_grad_()]

    def run(weight, delay, gain, *rest):
        count = len(constants) - 1
        decays, past, given = rest[:count], rest[count : 2 * count], rest[2 * count :]
        y, final = functional.delayed_linear(
            given[0] if given else x, weight, delay, gain=gain, decay=decays[0],
            max_delay=2.5, initial=past, strategy=strategy, dtype=F64,
            **({} if second is None else {second: decays[1]}),
        )  # fmt: skip
        return y, *final

    # The record that a delay of 2.5 steps asks for is one slot longer.
    initial = [torch.cat((i, i[:1])).detach().requires_grad_() for i in initial]
    assert gradcheck(run, (weight, delay, *constants, *initial, *graded))


def test_delays_outside_have_no_gradient_and_those_at_the_bounds_do(device, each_backend):
    layer = layer_of(device=device)
    (gradient,) = gradients(layer.scan(spikes(9, BATCH, INPUTS).to(device)), [layer.delay])
    outside = (layer.delay < 0) | (layer.delay > layer.max_delay)
    assert outside.sum() == 3
    assert (gradient[outside] == 0).all()
    assert (gradient[~outside] != 0).all()


@every_kind
def test_a_streaming_layer_learns_the_same_by_each_strategy(device, each_backend, kind):
    """No graph goes back in time, so that constants learn from the reads between steps alone."""

    def learned(strategy):
        layer = layer_of(kind, "learned", strategy=strategy).to(device)
        layer.synapse.inplace = True
        x = spikes(4, BATCH, INPUTS).to(device)
        y = layer.scan(x) if strategy != "auto" else torch.stack([layer(v) for v in x])
        loss = (y * uniform(*y.shape, seed=9).to(y)).sum()
        parameters = list(layer.parameters())
        return [y, *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    expected = learned("auto")
    assert sum(bool(gradient.any()) for gradient in expected) >= 5
    of_spikes = OF_SPIKES if kind == "single" else ()
    for strategy in ("shift", "gemm", *of_spikes):
        assert_same(learned(strategy), expected)


@STRATEGIES
def test_packed_spikes_are_the_same_spikes(device, each_backend, strategy):
    x = spikes(6, BATCH, INPUTS).to(device)
    layer = layer_of(device=device, strategy=strategy)
    again = copy.deepcopy(layer)
    assert_same([layer.scan(pack_spikes(x))], [again.scan(x)])


@pytest.mark.parametrize("strategy", ["shift", "gemm", "bits", "events"])
def test_strided_tensors_are_read_as_what_they_show(device, each_backend, strategy):
    """Weights, delays and past of any strides; and initialisers that give such tensors."""
    weight, delay = uniform(3, 4, seed=1).to(device), 3.0 * uniform(3, 4, seed=2).to(device)
    past = uniform(4, 3, 2, seed=3).to(device)
    x = spikes(6, 2, 3, seed=4).to(device)
    options = {"decay": 0.8, "max_delay": 3.0, "strategy": strategy}
    layer, held = (weight.t().contiguous(), delay.t().contiguous()), past.transpose(1, 2)
    given = [
        (layer, held.contiguous()),
        ((weight.t(), layer[1]), held),
        ((layer[0], delay.t()), held),
    ]
    expected, *results = (
        functional.delayed_linear(x, *tensors, initial=(initial,), **options)[0]
        for tensors, initial in given
    )
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)
    module = layer_of(strategy=strategy, device=device)
    turned = torch.rand(module.delay.shape[::-1], device=device).to(module.delay.dtype)
    other = layer_of(strategy=strategy, device=device, delay_init=lambda values: turned.t())
    assert other.delay.is_contiguous() and torch.equal(other.delay, turned.t())


def test_no_steps_change_nothing(device, each_backend):
    layer = layer_of(device=device)
    before = snapshot(layer)
    y = layer.scan(torch.zeros(0, BATCH, INPUTS, device=device))
    assert y.shape == (0, BATCH, OUTPUTS)
    assert same(before, snapshot(layer))


def test_without_delay(device, each_backend):
    layer = layer_of(device=device, delay=0.0)
    oracle = copy.deepcopy(layer)
    x = spikes(5, BATCH, INPUTS).to(device)
    y = layer.scan(x)
    assert_same([y], [oracle.synapse.scan(x) @ oracle.weight.t() + oracle.bias])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@STRATEGIES
def test_dtypes(device, each_backend, dtype, strategy):
    exact = layer_of(device=device)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    layer = copy.deepcopy(exact).to(dtype)
    layer.strategy = strategy
    x = spikes(6, BATCH, INPUTS).to(device)
    y = layer.scan(x)
    assert y.dtype == dtype
    wanted = exact.scan(x)
    error = (y.to(F64) - wanted).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps * wanted.abs().max()


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        # A window over a line is a view of it, whatever its shape says.
        if function not in (torch.ops.aten.unfold.default, torch.ops.aten.as_strided.default):
            self.elements = max([self.elements, *made])
        return result


@every_kind
@pytest.mark.parametrize("strategy", ["shift", "events"])
def test_the_tensor_of_delayed_currents_is_never_made(kind, strategy):
    steps, batch, inputs, outputs, slots = 3, 64, 40, 50, 4
    layer = DelayedLinear(
        inputs, outputs, 1.0, synapse=physics(kind), delay=3.0, batch_size=batch, strategy=strategy
    )
    x = spikes(steps, batch, inputs, rate=0.1)
    with Largest() as largest:
        layer.scan(x).sum().backward()
    assert layer.delay.grad is not None
    assert largest.elements < batch * inputs * outputs
    # Inputs with what came before them, outputs, parameters: a small multiple of the largest.
    sizes = ((steps + slots) * batch * inputs, steps * batch * outputs, inputs * outputs)
    assert largest.elements <= 4 * max(sizes)


LINES = {
    "weight": ("single", 17, 5, 3, torch.bool, {"weight"}, True),
    "input": ("single", 33, 3, 7, F64, {"x"}, True),
    "all": ("double", 33, 3, 4, torch.float32, {"x", "weight", "constants", "past"}, False),
    "constants": ("alpha", 17, 3, 3, "bits", {"constants"}, True),
    "past": ("alpha", 17, 2, 7, F64, {"weight", "past"}, False),
    "one slot": ("double", 17, 3, 1, torch.bool, {"weight", "past"}, False),
    "few rows": ("single", 3, 3, 3, F64, {"x", "weight"}, True),
    "no graph": ("single", 17, 3, 3, "bits", set(), False),
    "many steps": ("single", 64, 40, 7, F64, {"x", "weight"}, True),
}
SLOW_LINES = [pytest.param(n, marks=pytest.mark.slow) if n == "many steps" else n for n in LINES]


@pytest.mark.parametrize("name", SLOW_LINES)
def test_currents_in_lines_are_what_rows_are(device, short_turns, name, monkeypatch):
    """Values, the last currents and all gradients, whatever of them is wanted."""
    kind, batch, steps, slots, dtype, wanted, at_rest = LINES[name]
    inputs, outputs, states = 3, 2, {"single": 1}.get(kind, 2)
    signal = uniform(steps, batch, inputs, seed=1, low=-1)
    x = signal.to(dtype) if isinstance(dtype, torch.dtype) else signal > 0
    count = {"single": 2}.get(kind, 3)
    leaves = {
        "x": [x.to(device)],
        "constants": [uniform(inputs, seed=i, low=0.2).to(device) for i in range(count)],
        "weight": [uniform(outputs, inputs, seed=i).to(device) for i in range(states)],
        "past": [uniform(slots, batch, inputs, seed=i).to(device) for i in range(states)],
    }
    back = torch.arange(outputs * inputs, dtype=torch.int32, device=device).view(outputs, inputs)

    def run():
        made = {
            key: [t.clone().requires_grad_(key in wanted and t.is_floating_point()) for t in group]
            for key, group in leaves.items()
        }
        source = made["x"][0] if dtype != "bits" else pack_spikes(made["x"][0])
        past = None
        if not at_rest:
            past = Past(made["past"], [history[-1] for history in made["past"]])
        dynamics = Dynamics.of(made["constants"], kind == "alpha")
        taps = Taps(back % slots, made["weight"])
        synapses = Run(source, dynamics, past, slots, F64, "triton")
        y, tails = project_sequence(synapses, taps, strategy="shift")
        tensors = [t for group in made.values() for t in group if t.requires_grad]
        results = [y, *tails]
        found = [r.detach() for r in results]
        if y.requires_grad:
            for used in (results, results[:1], results[1:]):
                kept = [r for r in used if r.requires_grad]
                loss = sum((r * uniform(*r.shape, seed=i).to(r)).sum() for i, r in enumerate(kept))
                if kept:
                    options = {"allow_unused": True, "retain_graph": True}
                    found += torch.autograd.grad(loss, tensors, materialize_grads=True, **options)
        return found

    with recording(run=True) as launches:
        actual = run()
    written = [made for made in launches if made.constants.get("LINES")]
    assert bool(written) == (batch > 16)
    monkeypatch.setattr(delayed, "takes_lines", lambda x, backend: False)
    assert_same(actual, run(), 1e-12)


def test_nan_delay_stays_with_its_output(device, each_backend):
    layer = layer_of(device=device, strategy="shift")
    with torch.no_grad():
        layer.delay[1, 2] = float("nan")
    y = layer.scan(spikes(5, BATCH, INPUTS).to(device))
    assert y[..., 1].isnan().all()
    assert y[..., [0, 2]].isfinite().all()


# -- what users do with delays -----------------------------------------------------------------


def test_delays_are_brought_back_rounded_and_counted(device):
    layer = layer_of(device=device)
    steps = torch.tensor([[0, 1, 3, 0], [2, 1, 3, 3], [3, 1, 2, 1]], dtype=torch.int32)
    assert torch.equal(layer.delay_steps.cpu(), steps)
    layer.clamp_delays_()
    assert layer.delay.min() == 0.0
    assert layer.delay.max() == LONGEST
    layer.round_delays_()
    whole = (layer.delay / STEP).round()
    torch.testing.assert_close(layer.delay, whole * STEP, rtol=1e-12, atol=0)
    assert torch.equal(layer.delay_steps, whole.to(torch.int32))
    assert layer.delay.requires_grad


def test_rounded_delays_read_whole_steps(device):
    layer = layer_of(device=device)
    layer.round_delays_()
    oracle = copy.deepcopy(layer)
    x = spikes(9, BATCH, INPUTS).to(device)
    assert_same([layer.scan(x)], [materialised(oracle, x)])


@pytest.mark.parametrize("strategy", [pytest.param("gemm", marks=pytest.mark.slow), "events"])
def test_known_delays_are_recovered_from_data(strategy):
    """A layer that starts from equal delays learns those that made the data.

    With the double synapse, whose current is continuous: the derivative to a delay then sees all
    of what a delay does. That of the single synapse leaves out the jump at a spike.
    """
    torch.manual_seed(0)
    options = {"delay": 8.0, "batch_size": 16, "dtype": torch.float32, "strategy": strategy}
    known = torch.tensor([[1.5, 4.25, 6.0], [2.75, 0.5, 5.0]])
    synapse = tritonsyn.DoubleExponentialCurrent.partialconstructor(5.0, 6.0, 3.0)
    options |= {"synapse": synapse, "weight_init": torch.nn.init.ones_}
    teacher = DelayedLinear(3, 2, 1.0, delay_init=lambda t: known, **options)
    student = DelayedLinear(3, 2, 1.0, delay_init=lambda t: t.fill_(4.0), **options)
    optimizer = torch.optim.Adam([student.delay], lr=0.2)
    for _ in range(150):
        x = torch.rand(60, 16, 3) < 0.1
        teacher.clear()
        student.clear()
        with torch.no_grad():
            wanted = teacher.scan(x)
        loss = (student.scan(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        student.clamp_delays_()
    torch.testing.assert_close(student.delay.detach(), known, rtol=0, atol=0.05)


# -- a module like any other -------------------------------------------------------------------


def test_state_is_saved_copied_and_pickled(device):
    layer = layer_of(device=device)
    x = spikes(8, BATCH, INPUTS).to(device)
    layer.scan(x[:5])
    layer.detach_state()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = layer_of(device=device, weight_init=torch.nn.init.zeros_)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    others = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer_with_named_inits()))]
    expected = layer.scan(x[5:])
    for other in others[:2]:
        assert torch.equal(other.scan(x[5:]), expected)
    assert others[2].scan(x.cpu()).shape == (8, BATCH, OUTPUTS)


def layer_with_named_inits():
    synapse = tritonsyn.SingleExponentialCurrent.partialconstructor(2.0, 5.0)
    return DelayedLinear(INPUTS, OUTPUTS, STEP, synapse=synapse, delay=LONGEST, batch_size=BATCH)


def test_default_initial_values():
    torch.manual_seed(1)
    synapse = tritonsyn.SingleExponentialCurrent.partialconstructor(2.0, 5.0)
    layer = DelayedLinear(100, 200, STEP, synapse=synapse, delay=LONGEST, bias=True)
    assert 0.09 < layer.weight.abs().max() <= 0.1
    assert 0.09 < layer.bias.abs().max() <= 0.1
    assert 0.0 <= layer.delay.min() < 0.01
    assert 3.69 < layer.delay.max() <= LONGEST


def test_settings_pass_through_to_the_synapse():
    layer = layer_of()
    layer.scan(spikes(4, BATCH, INPUTS))
    layer.batchsz = 5
    layer.dt = 0.5
    layer.max_delay = 6.0
    assert (layer.synapse.batchsz, layer.synapse.dt, layer.synapse.delay) == (5, 0.5, 6.0)
    assert layer.scan(spikes(4, 5, INPUTS)).shape == (4, 5, OUTPUTS)
    assert "max_delay=6.0" in repr(layer)
    layer.clear()
    assert layer.synapse.current.abs().max() == 0


def test_rest_is_known_until_something_writes(device):
    layer = layer_of(device=device)
    records = layer.synapse.component_records()
    assert all(record.at_rest for record in records)
    writes = [
        lambda: layer(spikes(BATCH, INPUTS).to(device)),
        lambda: layer.scan(spikes(2, BATCH, INPUTS).to(device)),
        lambda: records[0].value.fill_(1.0),
        lambda: setattr(records[0], "value", records[0].value.detach()),
    ]
    for write in writes:
        write()
        assert not records[0].at_rest
        layer.clear()
        assert records[0].at_rest
    layer.load_state_dict(snapshot(layer))  # of a layer at rest
    for rested in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.double()):
        assert all(record.at_rest for record in rested.synapse.component_records())


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"in_features": 0}, "in_features must be a positive integer, but is 0"),
        ({"out_features": 2.5}, "out_features must be a positive integer, but is 2.5"),
        ({"step_time": -1.0}, "step_time must be greater than 0"),
        ({"delay": float("inf")}, "delay must be finite"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"synapse": 3}, "synapse must be what a synapse's partialconstructor returns"),
        ({"synapse": lambda *a, **k: torch.nn.Identity()}, "synapse must make a synapse"),
        ({"mask": torch.ones(3, 4) > 0, "fan_in": 2}, "mask and fan_in=2 were both given"),
        ({"strategy": "fast"}, "strategy must be one of auto, shift, gemm, bits, events"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"weight_init": 1.0}, "weight_init must be a function of a tensor"),
        ({"delay_init": lambda t: torch.zeros(3)}, "delay_init has shape"),
        ({"weight_init": lambda t: t.fill_(torch.nan)}, "weight_init must give finite values"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    arguments = {
        "in_features": 4, "out_features": 3, "step_time": 1.0, "delay": 2.0,
        "synapse": physics("single"),
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        DelayedLinear(**{**arguments, **options})


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3, BATCH, INPUTS + 1), "x has shape"),
        (torch.zeros(INPUTS), "x has shape"),
        (torch.zeros(3, BATCH, INPUTS, dtype=torch.complex64), "x must be a dense real tensor"),
        ([1.0], "x must be a dense real tensor or PackedSpikes"),
    ],
)
def test_a_refused_input_changes_nothing(x, message):
    layer = layer_of()
    layer.scan(spikes(4, BATCH, INPUTS))
    before = snapshot(layer)
    with pytest.raises((TypeError, ValueError), match=message):
        layer.scan(x)
    with pytest.raises((TypeError, ValueError)):
        layer(x)
    assert same(before, snapshot(layer))


@pytest.mark.parametrize("strategy", OF_SPIKES)
def test_spikes_cannot_be_summed_everywhere(strategy):
    before = layer_of(strategy=strategy)
    with pytest.raises(ValueError, match=r"needs spikes, .* but x is torch.float64"):
        before.scan(torch.zeros(3, BATCH, INPUTS, dtype=F64))
    apart = layer_of(constants="each", strategy=strategy)
    with pytest.raises(ValueError, match="time constants differ between inputs"):
        apart.scan(spikes(3, BATCH, INPUTS))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(0, 2, 3)}, "x has shape"),
        ({"weight": torch.zeros(2, 4)}, "weight has shape"),
        ({"delay": torch.zeros(3, 3)}, "delay has shape"),
        ({"delay": torch.zeros(2, 3, dtype=torch.int64)}, "delay must be a dense floating"),
        ({"initial": (torch.zeros(2, 2, 3),)}, r"initial\[0\] has shape"),
        ({"initial": ()}, "initial must hold 1 tensors, but is"),
        ({"initial": 3.0}, "initial must hold 1 tensors, but is 3.0"),
        ({"initial": ("x",)}, r"initial\[0\] must be a tensor, but a str was given"),
        ({"strategy": "other"}, "strategy must be one of"),
        ({"bias": torch.zeros(2, 1)}, "bias has shape"),
        ({"x": torch.zeros(4, 2, 3).to_sparse()}, "x must be a dense real tensor"),
        ({"weight": torch.zeros(2, 3).to_sparse()}, "weight must be a dense floating tensor"),
        ({"initial": (torch.zeros(3, 2, 3).to_sparse(),)}, r"initial\[0\] must be dense"),
        ({"weight": None}, "weight must be a dense floating tensor, but is NoneType"),
        ({"decay": 0.0}, "decay must be greater than 0"),
        ({"step_time": 0.0}, "step_time must be greater than 0"),
        ({"max_delay": float("nan")}, "max_delay must be finite, but is nan"),
    ],
)
def test_the_functional_form_refuses(change, message):
    arguments = {
        "x": torch.zeros(4, 2, 3), "weight": torch.zeros(2, 3), "delay": torch.zeros(2, 3),
        "decay": 0.8, "max_delay": 2.0,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        functional.delayed_linear(**{**arguments, **change})


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "half"])
def test_a_copy_of_a_layer_that_ran_is_not_taken_to_be_at_rest(how):
    """Also where its storage comes to lie where another was at rest."""
    x = torch.zeros(4, 1, 64, dtype=torch.bool)
    for _ in range(20):
        layer = DelayedLinear(
            64, 2, 1.0, delay=3.0,
            synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
        )  # fmt: skip
        with torch.no_grad():
            if how == "half":
                layer.half().float()
            layer(torch.ones(1, 64))
            if how == "deepcopy":
                layer = copy.deepcopy(copy.deepcopy(layer))
            elif how == "pickle":
                layer = pickle.loads(pickle.dumps(layer))
            assert not any(record.at_rest for record in layer.synapse.component_records())
            expected = copy.deepcopy(layer)
            expected.strategy = "shift"
            layer.strategy = "Events"
            torch.testing.assert_close(layer.scan(x), expected.scan(x))


def test_truncation_at_rest_stays_at_rest():
    layer = layer_of()
    layer.detach_state()
    assert all(record.at_rest for record in layer.synapse.component_records())


def test_rounded_delays_stay_within_the_longest():
    layer = DelayedLinear(
        1, 4, 0.1, delay=0.75,
        synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
        delay_init=lambda delay: delay.copy_(torch.tensor([[0.75], [0.66], [0.0], [9.0]])),
    )  # fmt: skip
    layer.round_delays_()
    torch.testing.assert_close(layer.delay.flatten(), torch.tensor([0.7, 0.7, 0.0, 0.7]))
    whole = DelayedLinear(
        1, 1, 0.1, delay=0.7,
        synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
        delay_init=lambda delay: delay.fill_(0.7),
    )  # fmt: skip
    whole.round_delays_()
    torch.testing.assert_close(whole.delay.flatten(), torch.tensor([0.7]))
    almost = DelayedLinear(
        1, 1, 1.0, delay=999.9995,
        synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
        delay_init=lambda delay: delay.fill_(999.9995),
    )  # fmt: skip
    almost.round_delays_()
    assert almost.delay.item() == 999.0


def test_a_step_that_fails_changes_nothing(device):
    layer = layer_of(device=device)
    layer.forward(spikes(BATCH, INPUTS).to(device))
    before = snapshot(layer)
    layer.delay = torch.nn.Parameter(torch.zeros(2, 2, device=device))
    with pytest.raises(ValueError, match="delay"):
        layer.forward(spikes(BATCH, INPUTS).to(device))
    after = snapshot(layer)
    for name in (name for name in before if name.startswith("synapse")):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay": 5.0}, r"synapse.current_.times of the saved state"),
        ({"synapse": physics("alpha")}, r"Unexpected .* synapse.rise_.pointer"),
        ({"out_features": 3}, r"weight of the saved state has shape \(3, 4\)"),
    ],
)
def test_a_refused_state_of_a_layer_changes_nothing(change, message):
    def make(out_features=2, **options):
        options = {"delay": 3.0, "synapse": physics("single"), **options}
        return DelayedLinear(4, out_features, 1.0, **options)

    layer, other = make(), make(**change)
    other.scan(torch.ones(3, other.batchsz, 4))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(other.state_dict())
    assert same(layer.state_dict(), before)


@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_a_layer_on_the_meta_device(delays):
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    layer = DelayedLinear(4, 3, 1.0, synapse=physics, delay=3.0, delays=delays, device="meta")
    assert layer.weight.is_meta and layer.synapse.current_.storage.is_meta
    layer.backend = "reference"
    assert layer(torch.zeros(2, 1, 4, device="meta")).shape == (2, 1, 3)


@pytest.mark.parametrize("wrong", [tritonsyn.SingleExponentialCurrent, torch.nn.Identity()])
def test_a_synapse_that_is_no_constructor_is_refused(wrong):
    with pytest.raises(TypeError, match="synapse must be what"):
        DelayedLinear(4, 3, 1.0, synapse=wrong, delay=3.0)


@pytest.mark.parametrize("strategy", ["shift", "gemm", "auto"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_reaches_those_that_read_it_alone(strategy, bad):
    x = torch.zeros(6, 1, 2)
    x[1, 0, 0] = bad
    delay = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    y, _ = functional.delayed_linear(
        x, torch.ones(2, 2), delay, decay=0.5, max_delay=3.0, strategy=strategy
    )
    assert y[:, 0].isfinite().tolist() == [[t < 3, t < 1] for t in range(6)]
    layer = layer_of(delay_init=lambda t: torch.zeros_like(t), dtype=torch.float32, batch_size=1)
    layer.delay.data[1:] = 2.6
    with torch.no_grad():
        for t in range(4):
            y = layer(torch.full((1, INPUTS), bad if t == 0 else 0.0))
            assert y.isfinite().tolist() == [[False, t < 2, t < 2]]


def test_products_on_a_gpu_are_not_chosen_for_what_may_not_be_finite():
    x, decays = torch.zeros(50, 4, 8), [torch.tensor(0.5)]
    gpu = {"device": SimpleNamespace(type="cuda")}
    work = Work(taps=10**6, past=0, slots=1, arrivals=None, finite=False)
    assert cheapest(work._replace(finite=True), **gpu) == "gemm"
    assert cheapest(work, **gpu) == "shift"
    assert cheapest(work, torch.device("cpu")) == "gemm"
    assert choose("auto", x, 8, 2, decays, at_rest=True) == "gemm"


def test_bits_are_chosen_for_spikes_on_a_gpu_without_counting_them():
    gpu = SimpleNamespace(type="cuda")
    work = Work(taps=10**6, past=0, slots=20, arrivals=None, spikes=True)
    assert cheapest(work, gpu) == "bits"
    assert cheapest(work._replace(arrivals=10**4), gpu) == "events"
    assert cheapest(work._replace(past=10**6), gpu) == "shift"
    assert cheapest(work._replace(spikes=False), gpu) == "shift"
    cpu = torch.device("cpu")
    assert cheapest(work, cpu) == "shift" and cheapest(work._replace(slots=4), cpu) == "gemm"


def test_a_decay_that_underflows_waits_whole_steps():
    x, one = torch.ones(4, 1, 1), torch.ones(1, 1)
    for decay in (1e-50, torch.zeros(1)):
        y, _ = functional.delayed_linear(x, one, one, decay=decay, max_delay=4.0)
        assert y.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]


def test_a_decay_of_zero_has_a_gradient_like_any_other():
    """That of the recurrence; on the way between two steps it has none."""
    x, one = torch.ones(4, 1, 1), torch.ones(1, 1)
    decay, rise = torch.zeros(1, requires_grad=True), torch.zeros((), requires_grad=True)
    y, _ = functional.delayed_linear(x, one, 2 * one, decay=decay, rise=0.5, max_delay=4.0)
    y.sum().backward()
    assert decay.grad.tolist() == [1.0]
    y, _ = functional.delayed_linear(x, one, one, decay=0.5, rise=rise, max_delay=4.0)
    y.sum().backward()
    assert rise.grad.item() == -2.0


@pytest.mark.parametrize("strategy", ["shift", "gemm"])
def test_autocast_leaves_the_precision_of_the_gradients(strategy):
    def run(autocast):
        layer = layer_of(dtype=torch.float32, strategy=strategy, backend="reference")
        x = uniform(9, BATCH, INPUTS, seed=3).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layer.scan(x).square().sum().backward()
        return [parameter.grad for parameter in layer.parameters()]

    assert all(map(torch.equal, run(autocast=True), run(autocast=False)))


def test_no_grid_is_larger_than_a_gpu_takes():
    """Only its first axis goes beyond 65,535."""
    many = 600_000
    thin, wide = torch.zeros(2, 1, 1), torch.zeros(2, 1, many)
    weight, back = torch.zeros(many, 1), torch.zeros(many, 1, dtype=torch.int32)
    with recording() as launches:
        for strategy in ("shift", "gemm"):
            way = (2, strategy, "ieee")
            backward = project_launch.project_backward
            project_launch.project(thin, weight, back, 2, *way)
            project_launch.project(thin, weight, back, 1, *way)
            backward(wide, thin, weight, back, 2, *way)
            backward(thin, wide, weight.t(), back.t(), 2, *way)
            backward(thin[:1], torch.zeros(70_001, 1, 1), None, back[:1], 1, 70_001, *way[1:])
        spikes = PackedSpikes(torch.zeros(2, 1, 1, dtype=torch.int32), (2, 1, 1))
        trains = SpikeTrains(spikes_launch.pack_trains(spikes, 2), spikes.shape)
        for given in (spikes, trains):
            spikes_launch.project_spikes(given, weight, back, 2)
            spikes_launch.project_spikes_weight(wide, given, back, 2)
    assert len(launches) == 32  # with those that make lines and tables, and pack or transpose bits
    assert all(size <= 65_535 for launch in launches for size in launch.grid[1:])


def test_the_backend_is_that_of_the_synapses():
    layer = layer_of(backend="reference")
    assert layer.backend == layer.synapse.backend == "reference"
    layer.backend = "auto"
    assert layer.synapse.backend == "auto"
    with pytest.raises(tritonsyn.backend.BackendError, match="backend is 'bogus'"):
        layer.backend = "bogus"
    with pytest.raises(TypeError, match="bias must be True or False, but is 'abc'"):
        layer_of(bias="abc")


CALLS = {
    "a step": lambda synapse, layer, x: synapse(x[0]),
    "a scan": lambda synapse, layer, x: synapse.scan(x),
    "a scan for the state": lambda synapse, layer, x: synapse.advance(x),
    "a scan with delayed reads": lambda synapse, layer, x: synapse.scan_at(x, torch.ones(1, 4)),
    "a step of a layer": lambda synapse, layer, x: layer(x[0]),
    "a scan of a layer": lambda synapse, layer, x: layer.scan(x),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("strategy", ["shift", "events"])
def test_constants_and_checks_are_made_once_a_call(call, strategy, learned, monkeypatch):
    tau = torch.nn.Parameter(torch.tensor(5.0)) if learned else 5.0
    made = tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, tau)
    layer = DelayedLinear(4, 3, 1.0, synapse=made, delay=2.0, strategy=strategy)
    counted = {"coefficients": 0, "check_sequence": 0}
    for name in counted:
        original = getattr(type(layer.synapse), name)

        def counting(*arguments, name=name, original=original):
            counted[name] += 1
            return original(*arguments)

        monkeypatch.setattr(type(layer.synapse), name, counting)
    CALLS[call](layer.synapse, layer, spikes(3, 1, 4))
    sequence = "scan" in call or ("layer" in call and strategy == "events")
    assert counted == {"coefficients": 1, "check_sequence": int(sequence)}


@pytest.mark.parametrize(
    "change", [{"x": 3.0}, *({"strategy": s} for s in ("other", "bits", "events"))]
)
def test_a_refused_sequence_changes_nothing(change):
    layer = DelayedLinear(
        4, 3, 1.0, delay=2.0,
        synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
    )  # fmt: skip
    layer.scan(spikes(2, 1, 4))
    before = snapshot(layer)
    with pytest.raises((TypeError, ValueError)):
        layer.strategy = change.get("strategy", "auto")
        layer.scan(change.get("x", torch.rand(3, 1, 4)))
    assert same(before, snapshot(layer))


def test_a_projection_turns_its_inputs_into_rows_and_back():
    """The hooks that a delayed convolution needs: here the layer sums over pairs of inputs."""

    class Pairs(DelayedProjection):
        step_axes = 3

        def __init__(self, **options):
            super().__init__((3, 2, 2), 4, 1.0, **options)

        def _lowered(self, x):
            return x.flatten(-2)

        def _raised(self, y):
            return y.unsqueeze(-1)

    options = {
        "synapse": tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
        "delay": 2.0, "batch_size": 5, "bias": True,
    }  # fmt: skip
    pairs, flat = Pairs(**options), DelayedLinear(4, 3, 1.0, **options)
    for name, parameter in flat.named_parameters():
        parameter.data = dict(pairs.named_parameters())[name].data.reshape(parameter.shape)
    x = spikes(6, 5, 2, 2)
    assert torch.equal(pairs.scan(x), flat.scan(x.flatten(2)).unsqueeze(-1))
    assert torch.equal(pairs(x[0]), flat(x[0].flatten(1)).unsqueeze(-1))
    assert pairs.delay_steps.shape == (3, 2, 2)
    assert pairs.scan(x[:0]).shape == (0, 5, 3, 1)


# -- what other layers build on ------------------------------------------------------------------


class Convolution(DelayedProjection):
    """A layer over a line ``[B, C, L]``: every window of three is a row of the synapses."""

    step_axes = 3

    def __init__(self, channels, outputs, length, batch_size, **options):
        self.positions = length - 2
        rows = batch_size * self.positions
        super().__init__((outputs, channels, 3), 3 * channels, STEP, batch_size=rows, **options)

    def _lowered(self, x):
        return x.unfold(-1, 3, 1).movedim(-3, -2).flatten(-2).flatten(-3, -2)

    def _raised(self, y):
        return y.unflatten(-2, (self.batchsz // self.positions, self.positions)).movedim(-1, -2)


@every_kind
def test_a_convolution_lowers_its_inputs_and_raises_what_comes_out(kind, device):
    """Every output is that of a dense layer on its window, of a step and of a sequence."""
    delay = 3.0 * uniform(3, 2, 3, seed=2)
    weight = uniform(3, 2, 3, seed=1, low=-1.0)
    options = {
        "delay": 3.0, "dtype": F64, "device": device, "synapse": physics(kind),
        "weight_init": lambda t: weight.view(t.shape).to(t),
        "delay_init": lambda t: delay.view(t.shape).to(t),
    }  # fmt: skip
    convolution = Convolution(2, 3, 6, BATCH, **options)
    x = spikes(5, BATCH, 2, 6).to(device)
    y = torch.cat((convolution.scan(x[:3]), torch.stack([convolution(row) for row in x[3:]])))
    assert y.shape == (5, BATCH, 3, 4)
    for at in range(4):
        dense = DelayedLinear(6, 3, STEP, batch_size=BATCH, **options)
        assert_same([y[..., at]], [dense.scan(x[..., at : at + 3].flatten(2))])
    y.sum().backward()
    assert convolution.weight.grad.shape == convolution.delay.grad.shape == (3, 2, 3)
    assert convolution.scan(x[:0]).shape == (0, BATCH, 3, 4)
