"""torch.compile, registered operators, pointers on the device, autocast."""

from inspect import signature

import pytest
import torch
from torch._dynamo.utils import counters
from torch.library import opcheck

import tritonsyn
from tritonsyn import AlphaCurrent, DoubleExponentialCurrent, SingleExponentialCurrent, functional
from tritonsyn.ops.spikes import pack_trains
from tritonsyn.ops.strategy import Work, cheapest
from tritonsyn.values import ReadRule

ROW = (2, 3)
CLASSES = (SingleExponentialCurrent, DoubleExponentialCurrent, AlphaCurrent)
OPERATORS = torch.ops.tritonsyn


def fixed(cls, device, capturable):
    """A synapse whose constants are numbers."""
    names = ["tc_decay", "tc_rise"] if cls is DoubleExponentialCurrent else ["time_constant"]
    constants = dict(zip(names, (6.0, 2.0), strict=False))
    return cls(
        3, 1.0, spike_charge=2.0, delay=3.0, batch_size=2, device=device, capturable=capturable,
        **constants,
    )  # fmt: skip


def learned(cls, device, capturable):
    """A synapse whose constants learn: one charge, and a slow time constant per synapse."""
    charge = torch.nn.Parameter(torch.tensor(2.0, device=device))
    slow = torch.nn.Parameter(torch.tensor([6.0, 7.0, 8.0], device=device))
    constants = {"spike_charge": charge}
    if cls is DoubleExponentialCurrent:
        constants |= {"tc_decay": slow, "tc_rise": 2.0}
    else:
        constants["time_constant"] = slow
    return cls(3, 1.0, delay=3.0, batch_size=2, device=device, capturable=capturable, **constants)


OPERATIONS = {
    "step": lambda synapse, x, sel: synapse(x[0]),
    "read": lambda synapse, x, sel: synapse.current_at(sel),
    "spike_at": lambda synapse, x, sel: synapse.spike_at(sel),
    "scan": lambda synapse, x, sel: synapse.scan(x),
    "scan_at": lambda synapse, x, sel: synapse.scan_at(x, sel)[1],
}


QUICK = [fixed, learned, fixed]
"""How each class is made in quick tests; the other way is slow."""


@pytest.mark.parametrize(
    ("cls", "make"),
    [
        pytest.param(cls, make, marks=[] if make is quick else [pytest.mark.slow])
        for cls, quick in zip(CLASSES, QUICK, strict=True)
        for make in (fixed, learned)
    ],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_operations_equal_eager_ones_without_recompiling(device, cls, make, name):
    compiled, eager = (make(cls, device, capturable=flag) for flag in (True, False))
    torch._dynamo.reset()
    counters.clear()
    # What the back end makes of the graph is tested once, below: it takes its time.
    operation = torch.compile(
        lambda x, sel: OPERATIONS[name](compiled, x, sel), fullgraph=True, backend="aot_eager"
    )
    for steps in (5, 6, 8, 9, 7, 10):
        x = torch.rand(steps, *ROW, device=device)
        sel = torch.rand(1, 3, device=device) * 3
        results = []
        for run, synapse in ((operation, compiled), (None, eager)):
            inputs = [v.clone().requires_grad_() for v in (x, sel)]
            synapse.zero_grad()
            y = run(*inputs) if run else OPERATIONS[name](synapse, *inputs)
            if y.requires_grad:
                y.square().sum().backward()
            results.append([y, *(v.grad for v in (*inputs, *synapse.parameters()))])
            synapse.detach_state()
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None) or not (b if a is None else a).any()
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(compiled.state_dict().values(), eager.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)
    # One graph for the first length and one for all others; the pointer adds none.
    assert counters["stats"]["unique_graphs"] <= 2


def test_compiled_steps_learn_as_eager_ones_do(device):
    """With the default back end: its recomputation must not read a pointer that moved on."""
    compiled, eager = (
        learned(SingleExponentialCurrent, device, capturable=flag) for flag in (True, False)
    )
    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True)
    for _ in range(3):
        x = torch.rand(*ROW, device=device)
        for synapse, run in ((compiled, step), (eager, eager)):
            synapse.zero_grad()
            run(x).sum().backward()
            synapse.detach_state()
        for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


LAYERS = {
    "double": DoubleExponentialCurrent.partialconstructor(2.0, 6.0, 2.0),
    "alpha": AlphaCurrent.partialconstructor(2.0, 3.0),
}


@pytest.mark.parametrize("name", ["scan", "step"])
@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("double", "shift"),
        ("double", "auto"),
        ("alpha", "auto"),
        pytest.param("double", "gemm", marks=pytest.mark.slow),
        pytest.param("alpha", "shift", marks=pytest.mark.slow),
        pytest.param("alpha", "gemm", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_layer_equals_an_eager_one(device, kind, name, strategy):
    physics = LAYERS[kind]

    def make(capturable):
        torch.manual_seed(0)
        return tritonsyn.DelayedLinear(
            3, 4, 1.0, synapse=physics, delay=3.0, bias=True, batch_size=2, device=device,
            strategy=strategy, capturable=capturable,
        )  # fmt: skip

    compiled, eager = make(True), make(False)
    torch._dynamo.reset()
    counters.clear()
    operation = torch.compile(
        compiled.scan if name == "scan" else compiled, fullgraph=True, backend="aot_eager"
    )
    for steps in (5, 6, 8, 7):
        x = torch.rand(*(() if name == "step" else (steps,)), *ROW, device=device)
        results = []
        for layer, run in ((compiled, operation), (eager, eager.scan if name == "scan" else eager)):
            given = x.clone().requires_grad_()
            layer.zero_grad()
            y = run(given)
            y.square().sum().backward()
            results.append([y, given.grad, *(p.grad for p in layer.parameters())])
            layer.detach_state()
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] <= 2


def test_the_costs_on_a_gpu_are_compared_while_compiling():
    """They depend on the precision of products, which is no tensor."""
    torch._dynamo.reset()

    def choose(x):
        work = Work(taps=100 * x.numel(), past=0, slots=1, arrivals=None)
        return x + 1, cheapest(work, torch.device("cuda"))

    _, chosen = torch.compile(choose, fullgraph=True, backend="eager")(torch.zeros(3))
    assert chosen == choose(torch.zeros(3))[1] == "gemm"


@pytest.mark.parametrize("learned_constants", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["bits", "events"])
def test_a_compiled_sum_of_spikes_equals_an_eager_one(device, strategy, learned_constants):
    constants = [
        torch.nn.Parameter(torch.tensor(v)) if learned_constants else v for v in (2.0, 6.0)
    ]
    physics = SingleExponentialCurrent.partialconstructor(*constants)

    def make(capturable):
        torch.manual_seed(0)
        return tritonsyn.DelayedLinear(
            3, 4, 1.0, synapse=physics, delay=3.0, batch_size=2, device=device,
            strategy=strategy, capturable=capturable,
        )  # fmt: skip

    compiled, eager = make(True), make(False)
    torch._dynamo.reset()
    counters.clear()
    scan = torch.compile(compiled.scan, fullgraph=True, backend="aot_eager")
    for steps in (5, 6, 8, 7):
        x = torch.rand(steps, *ROW, device=device) < 0.5
        results = []
        for layer, run in ((compiled, scan), (eager, eager.scan)):
            layer.zero_grad()
            y = run(x)
            y.square().sum().backward()
            results.append([y, *(p.grad for p in layer.parameters())])
            layer.detach_state()
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_host_pointer_is_refused_under_compile(device):
    synapse = learned(SingleExponentialCurrent, device, capturable=False)
    torch._dynamo.reset()
    step = torch.compile(synapse, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="capturable=True"):
        step(torch.rand(*ROW, device=device))


def leaf(*shape, device):
    return torch.rand(shape, device=device, requires_grad=True)


def test_operators_pass_opcheck(device):
    gain, decay, rise = leaf(device=device), leaf(3, device=device), leaf(device=device)
    x, initials = leaf(4, *ROW, device=device), [leaf(*ROW, device=device) for _ in "pn"]
    backend = "reference"
    f32 = torch.float32
    x, initials = x.detach(), [initial.detach() for initial in initials]
    constants = [constant.detach() for constant in (gain, decay, rise)]
    for taus, uses in ((constants[1:], 2), (constants[2:], 3)):
        way = (constants[0], taus, 1.0, f32)
        opcheck(OPERATORS.make_coefficients, (*way, backend))
        results = OPERATORS.make_coefficients(*way, backend)
        given = [None, *results[1:], *[results[-1]] * (uses - len(taus))]
        wanted = [True, False, True][: len(taus) + 1]
        operands = (given, results, *way, wanted, backend)
        opcheck(OPERATORS.make_coefficients_backward, operands)
    decay, rise = constants[1:]
    for coupled in (False, True):
        for starts in (initials, [initials[0], None], [None, None]):
            for last, dtype in ((2, f32), (1, None)):
                way = (constants, coupled, starts, last, dtype, backend)
                opcheck(OPERATORS.scan_forward, (x, None, *way))
    packed = functional.pack_spikes(torch.rand(4, 2, 40, device=device) < 0.5)
    way = ([gain.detach(), rise], False, [None], 1, f32, backend)
    opcheck(OPERATORS.scan_forward, (packed.words, list(packed.shape), *way))

    records = [torch.rand(5, *ROW, device=device) for _ in "pn"]
    sel, rates = torch.rand(1, 3, 2, device=device) * 4, [decay, rise]
    pointers = [torch.tensor(2, device=device) for _ in "pn"]
    rule = ReadRule("expdecay", 1.0, 4.0, 0.0, 0.0)
    for want in (True, False):
        way = (*rule, 1, want, want, backend)
        opcheck(OPERATORS.read_values, (records, sel, rates, pointers, *way))
    spikes = torch.rand(5, *ROW, device=device) < 0.5
    way = (*ReadRule("previous", 1.0, 4.0), 1, False, False, backend)
    opcheck(OPERATORS.read_values, ([spikes], sel, [None], pointers[:1], *way))
    way = ([decay, rise], pointers, *rule, 3, True, True, backend)
    opcheck(OPERATORS.read_values, (records, sel[..., :1].contiguous(), *way))
    dvalue = torch.rand(*ROW, 2, device=device)
    opcheck(OPERATORS.read_adjoint, (dvalue, 5, sel, rates, pointers, *rule, 1, backend))
    for whole in (False, True):
        opcheck(OPERATORS.batch_dot, (records[0][0], records[1][0], whole, backend))
    opcheck(OPERATORS.hold, (pointers[0],))
    for weights in (torch.rand(3, 3, device=device), torch.rand(1, 3, device=device)):
        opcheck(OPERATORS.filter_rows, (turned(records[0]), weights, backend))
        dy = turned(torch.rand(3, *ROW, device=device))
        opcheck(OPERATORS.filter_adjoint, (dy, turned(records[0]), weights, True, True))
    sel, pasts = sel[..., :1].contiguous(), [record[:2] for record in records]
    for before, rows in (([], [0, 5]), (pasts, [2, 3])):
        sequences = [record[-rows[1] :].clone() for record in records]
        operands, way = (before, sequences, sel, rates), (*rule, 3, 3)
        opcheck(OPERATORS.read_sequence, (*operands, *way, backend))
        dvalue = torch.rand(3, *ROW, device=device)
        for wanted in ([bool(before), True, True, True], [False, False, True, False]):
            opcheck(OPERATORS.read_sequence_adjoint, (dvalue, *operands, *way, rows, wanted))

    weight = torch.rand(4, 3, device=device)
    back = torch.tensor([[0, 1, 2]] * 4, device=device).int()
    for delay, lower in ((weight, 0.0), (weight[:1].contiguous(), 0.5)):
        way = (weight, delay, rates, *rule[:4], lower, 5)
        opcheck(OPERATORS.make_taps, (*way, backend))
        dweights, wanted = [None, weight], [True, True, False, True]
        opcheck(OPERATORS.make_taps_backward, (dweights, *way, wanted, backend))
    dy = torch.rand(3, 2, 4, device=device)
    for strategy in ("shift", "gemm"):
        for digits in (None, "ieee"):
            way = (strategy, digits, backend)
            opcheck(OPERATORS.project_component, (records[0], None, weight, back, [], 3, 3, *way))
            for sequence, other in ((records[0], weight), (None, weight), (records[0], None)):
                arguments = (dy, sequence, None, other, back, [], 3, 3, f32, *way)
                opcheck(OPERATORS.project_component_backward, arguments)
    opcheck(OPERATORS.pack_rows, (torch.rand(6, 40, device=device) < 0.5, backend))
    packed = functional.pack_spikes(torch.rand(4, 2, 3, device=device) < 0.5)
    walk, way = (packed.words, list(packed.shape)), ("events", None, backend)
    opcheck(OPERATORS.project_component, (*walk, weight, back, [], 4, 3, *way))
    dv = torch.rand(4, 2, 4, device=device)
    opcheck(OPERATORS.project_component_backward, (dv, *walk, None, back, [], 4, 3, f32, *way))
    opcheck(OPERATORS.pack_steps, (*walk, 3, backend))
    trains = (pack_trains(packed, 3, backend=backend).words, list(packed.shape))
    way = ("bits", None, backend)
    opcheck(OPERATORS.project_component, (*trains, weight, back, [], 4, 3, *way))
    opcheck(OPERATORS.project_component_backward, (dv, *trains, None, back, [], 4, 3, f32, *way))


def turned(tensor):
    """The same values with the axes the other way round in memory."""
    other = tensor.detach().permute(*range(tensor.ndim)[::-1]).contiguous()
    return other.permute(*range(tensor.ndim)[::-1]).requires_grad_(tensor.requires_grad)


def test_operators_take_what_lies_in_any_order(device):
    """What an operator returns must lie in memory as the compiler was told."""
    gain, decay, rise = leaf(device=device), leaf(3, device=device), leaf(device=device)
    constants = [constant.detach() for constant in (gain, decay, rise)]
    backend, f32 = "reference", torch.float32
    x, initials = leaf(4, *ROW, device=device), [leaf(*ROW, device=device) for _ in "pn"]
    x, starts = turned(x.detach()), [turned(initial.detach()) for initial in initials]
    opcheck(OPERATORS.scan_forward, (x, None, constants, False, starts, 2, f32, backend))
    dy, *dtails = [turned(torch.rand(size, *ROW, device=device)) for size in (4, 2, 2)]
    way = (constants, False, starts, f32, True, backend)
    opcheck(OPERATORS.scan_backward, (dy, dtails, x, None, *way))
    pointers, rule = [torch.tensor(2, device=device)] * 2, ReadRule("expdecay", 1.0, 4.0, 0.0, 0.0)
    records = [torch.rand(5, *ROW, device=device) for _ in "pn"]
    sel = turned(torch.rand(1, 3, 2, device=device) * 4)
    way = (constants[1:], pointers, *rule, 1)
    opcheck(OPERATORS.read_values, (records, sel, *way, True, True, backend))
    dvalue = turned(torch.rand(2, 3, 2, device=device))
    opcheck(OPERATORS.read_adjoint, (dvalue, 5, sel, *way, backend))
    weight = turned(torch.rand(4, 3, device=device))
    back = torch.zeros(4, 3, device=device).int()
    sequence, dy = turned(records[0]), turned(torch.rand(3, 2, 4, device=device))
    opcheck(OPERATORS.batch_dot, (turned(records[0][0]), turned(records[1][0]), False, backend))
    for strategy in ("shift", "gemm"):
        way = (strategy, "ieee", backend)
        opcheck(OPERATORS.project_component, (sequence, None, weight, back, [], 3, 3, *way))
        operands = (dy, sequence, None, weight, back, [], 3, 3, f32)
        opcheck(OPERATORS.project_component_backward, (*operands, *way))


@pytest.mark.parametrize("name", ["scan", "scan_at"])
@pytest.mark.parametrize("pack", [False, True], ids=["turned", "packed"])
def test_a_compiled_sequence_may_be_turned_or_packed(device, name, pack):
    compiled, eager = (
        learned(SingleExponentialCurrent, device, capturable=flag) for flag in (True, False)
    )
    x, times = torch.rand(5, *ROW, device=device) < 0.5, torch.rand(1, 3, device=device) * 3
    x = functional.pack_spikes(x) if pack else turned(x)
    torch._dynamo.reset()
    operation = torch.compile(
        lambda x: OPERATIONS[name](compiled, x, times), fullgraph=True, backend="aot_eager"
    )
    y, expected = operation(x), OPERATIONS[name](eager, x, times)
    torch.testing.assert_close(y, expected)
    for result in (y, expected):
        result.square().sum().backward()
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_capturable_equals_plain(device, backend):
    def run(capturable):
        synapse = learned(DoubleExponentialCurrent, device, capturable)
        synapse.backend = backend
        torch.manual_seed(1)
        x = torch.rand(9, *ROW, device=device, requires_grad=True)
        sel = torch.rand(1, 3, device=device) * 3
        total = torch.zeros((), device=device)
        for row in x[:5]:
            total = total + (synapse(row) * synapse.current_at(sel)).sum()
        total = total + synapse.scan(x[5:]).sum() + synapse.current.sum()
        synapse.pos_current = torch.ones(ROW, device=device)
        (total + synapse.pos_current.sum()).backward()
        return synapse, [total, x.grad, *(p.grad for p in synapse.parameters())]

    (plain, expected), (capturable, actual) = run(False), run(True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert capturable.spike_.pointer == plain.spike_.pointer == 9 % 4
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(capturable.state_dict()[name], value)
    resumed = learned(DoubleExponentialCurrent, device, capturable=True)
    resumed.load_state_dict(plain.state_dict())
    assert resumed.spike_.pointer == plain.spike_.pointer


@pytest.mark.gpu
def test_a_step_is_captured_in_a_graph(device):
    options = {"spike_charge": 2.0, "time_constant": 5.0, "delay": 3.0, "device": device}
    captured = SingleExponentialCurrent(3, 1.0, capturable=True, inplace=True, **options)
    stepped = SingleExponentialCurrent(3, 1.0, capturable=True, inplace=True, **options)
    plain = SingleExponentialCurrent(3, 1.0, inplace=True, **options)
    x = torch.rand(1, 3, device=device)
    side = torch.cuda.Stream()
    with tritonsyn.use_backend("triton"), torch.cuda.stream(side):
        captured(x)
    torch.cuda.current_stream().wait_stream(side)
    captured.clear()
    graph = torch.cuda.CUDAGraph()
    with tritonsyn.use_backend("triton"), torch.cuda.graph(graph):
        y = captured(x)
    captured.clear()
    for _ in range(7):
        x.uniform_()
        graph.replay()
        assert torch.equal(y, stepped(x, backend="triton"))
        torch.testing.assert_close(y, plain(x))


def test_autocast_leaves_gradients_of_compiled_products_alone(device):
    physics = SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    how = {"delay": 3.0, "delays": "input", "capturable": True, "batch_size": 2, "device": device}
    layer = tritonsyn.DelayedLinear(3, 2, 1.0, synapse=physics, **how)
    x, found = torch.rand(4, *ROW, device=device), []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.clear()
        with torch.autocast(device.type, torch.bfloat16):
            y = run(x)
        found.append(torch.autograd.grad(y.square().sum(), [*layer.parameters()]))
    torch.testing.assert_close(*found)


def test_autocast_leaves_the_dtypes_of_the_records(device):
    synapse = learned(SingleExponentialCurrent, device, capturable=False)
    other = learned(SingleExponentialCurrent, device, capturable=False)
    x = torch.rand(4, *ROW, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = synapse.scan(x)
        delayed = synapse.current_at(torch.rand(1, 3, device=device))
    assert y.dtype == delayed.dtype == torch.float32
    torch.testing.assert_close(y, other.scan(x))


def filtered(x, gain, decay, rise, initial):
    y, _ = functional.double_exp_scan(x, decay, rise, gain, (initial, initial.square()))
    return y


def delayed(x, times, decay, rise):
    rates = (-decay.log(), -rise.log())
    return functional.select_scan((x, x.square()), times, rates, ReadRule("expdecay", 1.0, 3.0), 2)


def connected(x, weight, times, gain, decay):
    y, _ = functional.delayed_linear(
        x, weight, times * weight, gain=gain, decay=decay, max_delay=3.0, strategy="shift"
    )
    return y


ALONE = [
    (operation, name)
    for operation in (filtered, delayed, connected)
    for name in signature(operation).parameters
]


@pytest.mark.parametrize(("operation", "name"), ALONE)
def test_a_compiled_gradient_to_one_tensor_alone_equals_the_eager_one(device, operation, name):
    """Only what that one gradient needs is computed."""
    given = {
        "x": torch.rand(5, *ROW, device=device),
        "initial": torch.rand(*ROW, device=device),
        "times": torch.rand(1, 3, device=device) * 3,
        "weight": torch.rand(4, 3, device=device),
        "gain": torch.rand(3, device=device),
        "decay": torch.full((3,), 0.9, device=device),
        "rise": torch.full((), 0.4, device=device),
    }
    arguments = {n: given[n].requires_grad_(n == name) for n in signature(operation).parameters}
    torch._dynamo.reset()
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad(run(**arguments).square().sum(), arguments[name])[0]
        for run in (compiled, operation)
    ]
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_compiled_read_are_summed_as_eager_ones(device, dtype):
    """To times that the batch shares, and to rates: the same bits."""
    records = torch.randn(2, 5, 40, *ROW, device=device).to(dtype)
    times = torch.rand(1, *ROW, device=device) * 4
    rates = torch.rand(2, device=device)
    rule = ReadRule("expdecay", 1.0, 4.0, overbound=0.0)

    def read(records, times, rates):
        return functional.select_scan(tuple(records), times, tuple(rates), rule, 1)

    torch._dynamo.reset()
    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    leaves = [tensor.requires_grad_() for tensor in (records, times, rates)]
    weights = torch.randn(1, 40, *ROW, device=device)
    actual, expected = (
        torch.autograd.grad((run(*leaves) * weights).sum(), leaves) for run in (compiled, read)
    )
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("missing", [0, 1])
def test_one_initial_state_of_two_counts_under_compile(device, missing):
    x = torch.rand(4, *ROW, device=device)
    initial = [torch.rand(*ROW, device=device) for _ in "pn"]
    initial[missing] = None
    torch._dynamo.reset()
    compiled = torch.compile(functional.double_exp_scan, fullgraph=True, backend="aot_eager")
    arguments = (x, 0.9, 0.5, 1.0, initial)
    torch.testing.assert_close(compiled(*arguments), functional.double_exp_scan(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_compiled_step_computes_in_float32(device, dtype):
    """Also where all synapses share a constant, which alone would not raise the precision."""
    tau = torch.nn.Parameter(torch.tensor(5.0, device=device))
    gradients = []
    for compiled in (True, False):
        synapse = SingleExponentialCurrent(
            512, 1.0, spike_charge=1.0, time_constant=tau, batch_size=16, dtype=dtype,
            device=device, capturable=True,
        )  # fmt: skip
        torch._dynamo.reset()
        step = torch.compile(synapse, fullgraph=True, backend="aot_eager") if compiled else synapse
        torch.manual_seed(0)
        synapse.current = torch.rand(16, 512, device=device, dtype=dtype)
        y = step(torch.rand(16, 512, device=device))
        gradients += torch.autograd.grad(y.float().sum(), tau)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_empty_compiled_operations_have_gradients(device):
    def run(x, record, times):
        y, _ = functional.exp_scan(x, 0.5)
        rule = ReadRule("linear", 1.0, 2.0)
        return y.sum() + functional.select_scan((record,), times, (None,), rule, 1).sum()

    torch._dynamo.reset()
    leaves = [
        leaf(0, *ROW, device=device),
        leaf(3, *ROW, device=device),
        leaf(1, 3, 0, device=device),
    ]
    torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves).backward()
    assert all(not tensor.grad.any() for tensor in leaves)


@pytest.mark.parametrize("cls", [SingleExponentialCurrent, DoubleExponentialCurrent])
def test_the_last_program_of_a_step_moves_the_pointers(device, each_backend, small_tiles, cls):
    """Once, also where the work of a step is cut into many; pointers that differ stay apart."""
    constants = [2.0, 6.0, 3.0][: 2 + (cls is DoubleExponentialCurrent)]
    made = cls.partialconstructor(*constants, inplace=True)
    captured, plain = (
        made(50, 1.0, 2.0, 3, device=device, capturable=capturable) for capturable in (True, False)
    )
    for synapse in (captured, plain):
        synapse.spike_.incr(2)
    for t in range(5):
        x = torch.rand(3, 50, device=device) < 0.5
        assert torch.equal(captured(x), plain(x))
        assert captured.spike_.pointer == plain.spike_.pointer == t % 3
        assert {r.pointer for r in captured.component_records()} == {(t + 1) % 3}
        assert captured.arrivals.item() == 0
    for name, value in plain.state_dict().items():
        assert torch.equal(captured.state_dict()[name], value)


@pytest.mark.parametrize("cls", [SingleExponentialCurrent, DoubleExponentialCurrent])
def test_a_count_that_was_left_over_is_cleared(device, each_backend, cls):
    """As two streams, or a replay beside an eager step, may leave it: steps go on after it."""
    constants = [2.0, 6.0, 3.0][: 2 + (cls is DoubleExponentialCurrent)]
    synapse = cls.partialconstructor(*constants)(5, 1.0, 2.0, 2, device=device, capturable=True)
    synapse.arrivals.fill_(1)
    synapse.clear()
    assert synapse.arrivals.item() == 0
    for t in range(4):
        synapse(torch.ones(2, 5, device=device))
        assert {record.pointer for record in synapse._records()} == {(t + 1) % 3}


def test_compiled_code_reads_settings():
    """Those of a synapse and of a record, as plain numbers."""
    synapse = DoubleExponentialCurrent(
        3,
        0.5,
        spike_charge=1.0,
        tc_decay=6.0,
        tc_rise=3.0,
        delay=2.0,
        batch_size=4,
        capturable=True,
    )

    @torch.compile(fullgraph=True, backend="eager")
    def scaled(x):
        numbers = synapse.dt + synapse.delay + synapse.batchsz + synapse.spike_.duration
        return x * (numbers + synapse.shape[0]) if not synapse.inplace else x

    torch._dynamo.reset()
    assert scaled(torch.ones(())) == 0.5 + 2.0 + 4 + 2.0 + 3


@pytest.mark.parametrize("run", ["forward", "scan"])
@pytest.mark.parametrize(
    ("cls", "inplace"),
    [
        pytest.param(cls, inplace, marks=[] if inplace is quick else [pytest.mark.slow])
        for cls, quick in zip(CLASSES, (True, False, False), strict=True)
        for inplace in (True, False)
    ],
)
def test_a_module_that_is_not_capturable_says_so_first(cls, inplace, run):
    """A whole graph is refused in the error's first line; otherwise the graph ends there."""
    constants = [2.0, 6.0, 3.0][: 2 + (cls is DoubleExponentialCurrent)]
    make = cls.partialconstructor(*constants, inplace=inplace)
    x = torch.rand(4, 2, 3)
    torch._dynamo.reset()
    whole = torch.compile(getattr(make(3, 1.0, 2.0, 2), run), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) as refused:
        whole(x if run == "scan" else x[0])
    assert "must be made with capturable=True" in str(refused.value).splitlines()[0]

    torch._dynamo.reset()
    broken, eager = make(3, 1.0, 2.0, 2), make(3, 1.0, 2.0, 2)
    compiled = torch.compile(getattr(broken, run), backend="eager")
    for given in (x, x.flip(0)) if run == "scan" else x:
        torch.testing.assert_close(compiled(given), getattr(eager, run)(given))
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(broken.state_dict()[name], value)
