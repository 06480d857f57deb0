"""Programs with explicit state: equal to the modules they are made of, and free of tritonsyn."""

import copy
import random
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from synapses import CLASSES, PHYSICS, every_kind, make, spikes, uniform
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from tritonsyn import Delay, DelayedConv1d, DelayedConv2d, DelayedLinear, RecordTensor
from tritonsyn.export import ExplicitState, to_onnx, to_program
from tritonsyn.functional import pack_spikes

F64 = torch.float64


class Threshold(nn.Module):
    def forward(self, x):
        return (x > 0.3).to(x.dtype)


def physics(kind):
    return CLASSES[kind].partialconstructor(*PHYSICS[kind].values())


def around(delay):
    """Delays within the bounds and beyond them."""
    return delay.uniform_(-0.5, 4.5)


def layer(make_layer, *size, kind="single", delay=4.0, **options):
    torch.manual_seed(1)
    how = {"synapse": physics(kind), "delay": delay, "delay_init": around}
    how |= {"dtype": F64, **options}
    return make_layer(*size, 1.0, **how)


def linear(inputs=3, outputs=2, **options):
    return layer(DelayedLinear, inputs, outputs, **options)


def delay(shape, **options):
    torch.manual_seed(1)
    how = {"delay": 4.0, "delay_init": around, "dtype": F64, **options}
    return Delay(shape, 1.0, **how)


MASK = torch.tensor([[True, False, True], [False, False, True]])
LAYERS = {
    "connection": (partial(linear, bias=True), (3,)),
    "input": (partial(linear, delays="input", min_delay=2.5, bias=True), (3,)),
    "output": (partial(linear, delays="output", min_delay=1.5), (3,)),
    "mask": (partial(linear, mask=MASK), (3,)),
    "masked inputs": (partial(linear, mask=MASK, delays="input"), (3,)),
    "undelayed": (partial(linear, delay=0.0), (3,)),
    "conv1d": (partial(layer, DelayedConv1d, 4, 6, 2, groups=2, padding="same"), (4, 7)),
    "conv1d of inputs": (
        partial(layer, DelayedConv1d, 4, 6, 3, groups=2, delays="input", stride=2, bias=True),
        (4, 7),
    ),
    "conv2d": (partial(layer, DelayedConv2d, 3, 2, 2, padding=(0, 1), bias=True), (3, 4, 5)),
    "conv2d of inputs": (partial(layer, DelayedConv2d, 3, 2, 2, delays="input"), (3, 4, 5)),
}
EVERY = {
    **{kind: (partial(make, kind, (3, 2), dtype=F64), (3, 2)) for kind in CLASSES},
    **{
        f"{name}, {kind}": (partial(made, kind=kind), size)
        for name, (made, size) in LAYERS.items()
        for kind in CLASSES
    },
    **{
        f"delay, {interp}": (partial(delay, (3, 2), interp=interp), (3, 2))
        for interp in ("previous", "nearest", "linear", "gaussian")
    },
}
every_module = pytest.mark.parametrize("name", EVERY)


def build(name, **options):
    """A module, and the size of its inputs without the batch."""
    made, size = EVERY[name]
    return made(**options), size


def rounded(module):
    for part in module.modules():
        if hasattr(part, "round_delays_"):
            part.round_delays_()
    return module


def compare(module, program, parts, **tolerances):
    """Both take the same inputs one after the other, from rest."""
    state = ExplicitState(module).initial_state(parts[0])
    for x in parts:
        with torch.no_grad():
            expected = module(x)
        y, *state = program(x, *state)
        assert_close(y, expected, **tolerances)
    assert y.any()
    return state


exactly = {"rtol": 1e-12, "atol": 1e-12}


@every_module
@pytest.mark.parametrize("whole", [False, True])
def test_steps_and_sequences_are_the_modules(name, whole):
    """In parts of any length, each of which goes on from the state of the last."""
    module, size = build(name)
    module = rounded(module) if whole else module
    program = ExplicitState(module)
    x = spikes(15, 2, *size) * uniform(15, 2, *size)
    parts = [x[0], x[1], x[2:9], x[9:11], x[11:12], x[12], x[13:]]
    state = compare(module, program, parts, **exactly)
    assert_close([torch.zeros_like(part) for part in state], [*program.initial_state(x[0])])
    assert not any(tensor.requires_grad for tensor in (*state, *program.parameters()))


@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_a_layer_without_connections_gives_its_bias(delays):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    module = linear(mask=mask, delays=delays, bias=True)
    compare(module, ExplicitState(module), [spikes(2, 3), spikes(5, 2, 3)], **exactly)


@pytest.mark.parametrize("name", ["double", "connection, alpha", "conv1d of inputs, single"])
def test_batch_first(name):
    module, size = build(name, batch_first=True)
    x = spikes(2, 12, *size)
    compare(module, ExplicitState(module), [x[:, :5], x[:, 5], x[:, 6:]], **exactly)


@pytest.mark.parametrize("name", ["double", "connection, alpha", "delay, linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_is_float32_for_other_dtypes(name, dtype):
    module, size = build(name, dtype=dtype)
    program = ExplicitState(module)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    state = compare(module, program, spikes(9, 2, *size), rtol=tolerance, atol=tolerance)
    assert all(part.dtype == torch.float32 for part in state)


def test_constants_of_each_synapse_and_parametrized_delays():
    """As they are when the program is made: what comes later does not reach it."""
    module = linear(kind="double")
    module.synapse.tc_decay = nn.Parameter(torch.tensor([4.0, 5.0, 6.0], dtype=F64))
    module.synapse.spike_charge = torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    parametrize.register_parametrization(module, "delay", nn.Softplus())
    program, twin = ExplicitState(module), copy.deepcopy(module)
    with torch.no_grad():
        module.weight.zero_()
        module.synapse.tc_decay += 1.0
    compare(twin, program, spikes(9, 2, 3), **exactly)


@pytest.mark.parametrize("delays", [None, "connection", "input"])
def test_learned_time_constants_that_have_met_or_crossed(delays):
    """Of the double synapse, to what docs/conventions.md says of the rounding there."""
    module = make("double", dtype=F64) if delays is None else linear(kind="double", delays=delays)
    synapse = getattr(module, "synapse", module)
    for name, tau in (("tc_decay", [4.0, 5.0, 6.0]), ("tc_rise", [1.0, 2.0, 3.0])):
        setattr(synapse, name, nn.Parameter(torch.tensor(tau, dtype=F64)))
    with torch.no_grad():
        synapse.tc_rise.add_(torch.tensor([3.0, 3.0 + 1e-9, 4.0], dtype=F64))
    program = ExplicitState(module)
    compare(module, program, [*spikes(5, 2, 3), spikes(7, 2, 3)], rtol=2e-10, atol=2e-10)


# -- nets -----------------------------------------------------------------------------------------


def network(dtype=F64):
    """Thresholds between layers with fractional and with whole delays."""
    how = {"delay": 9.0, "bias": True, "dtype": dtype}
    return nn.Sequential(
        linear(8, 6, kind="double", **how),
        Threshold(),
        rounded(linear(6, 5, delays="input", **how)),
        Threshold(),
        delay(5, dtype=dtype),
    )


class Recurrent(nn.Module):
    """Takes what it gave before as an input, and uses one layer twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"in": linear(3, 3), "back": linear(3, 3, delay=2.0)})
        self.shared = [self.layers["in"].synapse, make("single", 3, dtype=F64)]
        self.filter = self.shared[1]

    def forward(self, x, z):
        y = self.layers["in"].scan(x[None])[0] + self.layers["back"](z)
        y = self.shared[1](y)
        return self.filter(y), torch.tanh(y)


def test_a_net_keeps_its_own_forward():
    net, program = Recurrent(), ExplicitState(Recurrent())
    assert program.state_names == ("layers.in.current", "layers.back.current", "filter.current")
    z = own = torch.zeros(2, 3, dtype=F64)
    state = program.initial_state(z, z)
    for x in spikes(9, 2, 3).double():
        with torch.no_grad():
            expected, z = net(x, z)
        y, own, *state = program(x, own, *state)
        assert_close((y, own), (expected, z), **exactly)
    assert y.any()


def test_names_and_shapes_of_states():
    program = ExplicitState(network())
    names = "0.pos_current", "0.neg_current", "2.current", "4.signal"
    assert program.state_names == names
    state = program.initial_state(torch.zeros(7, 8, dtype=F64))
    assert [tuple(part.shape) for part in state] == [(7, 8, 10), (7, 8, 10), (7, 6, 10), (7, 5, 5)]
    assert not any(part.any() for part in state)


@every_kind
def test_whole_steps_need_the_currents_alone(kind):
    """The other states have no past, and there is one sum of connections."""
    x = torch.zeros(2, 3, dtype=F64)
    fractional, whole = (ExplicitState(m) for m in (linear(kind=kind), rounded(linear(kind=kind))))
    shapes = {n: s.ndim for n, s in zip(whole.state_names, whole.initial_state(x), strict=True)}
    assert (
        shapes
        == {
            "single": {"current": 3},
            "double": {"pos_current": 2, "neg_current": 2, "current": 3},
            "alpha": {"rise": 2, "current": 3},
        }[kind]
    )
    sums = [
        sum("index_select" in str(node.target) for node in to_program(program, x).graph.nodes)
        for program in (fractional, whole)
    ]
    assert sums == [1 if kind == "single" else 2, 1]


def test_whole_steps_of_a_delay_read_one_value():
    x = torch.zeros(2, 3, dtype=F64)
    programs = [to_program(net, x) for net in (delay(3), rounded(delay(3)))]
    targets = [{str(node.target) for node in program.graph.nodes} for program in programs]
    assert ["aten.mul.Tensor" in found for found in targets] == [True, False]


# -- random nets ----------------------------------------------------------------------------------


def drawn(draw, size, **how):
    """A module that returns as many values as it takes, with constants of any form."""
    kind, form = draw.choice([*CLASSES]), draw.choice(["synapse", "delay", *["layer"] * 4])
    if form == "synapse":
        module = make(kind, size, **how)
    elif form == "delay":
        interp = draw.choice(["previous", "nearest", "linear", "gaussian"])
        module = delay(size, interp=interp, **how)
    else:
        kinds = ["connection", "input", "output"][: 4 - len(size)]
        how |= {"kind": kind, "delays": draw.choice(kinds), "bias": draw.random() < 0.5}
        how |= {"min_delay": draw.choice([0.0, 1.5])}
        if len(size) == 1:
            mask = spikes(4, 4, seed=draw.randrange(99), rate=0.7)
            module = linear(4, 4, mask=draw.choice([None, mask]), **how)
        else:
            module = layer(DelayedConv1d, 4, 4, 3, padding="same", **how)
    synapse = getattr(module, "synapse", module)
    for name, value in PHYSICS[kind].items() if form != "delay" else ():
        shape = draw.choice([None, (), synapse.shape])
        if shape is not None:
            values = value * uniform(*shape, seed=draw.randrange(99), low=0.7, high=1.3)
            values = values.to(how["dtype"])
            setattr(synapse, name, nn.Parameter(values) if draw.random() < 0.7 else values)
    return rounded(module) if draw.random() < 0.3 else module


def drawn_net(seed):
    """Two or three such modules in a row, nine steps of inputs, and the tolerance."""
    draw = random.Random(seed)
    size, dtype = draw.choice([(4,), (4,), (4, 6)]), draw.choice([F64, torch.float32])
    how = {"dtype": dtype, "batch_first": draw.random() < 0.5}
    net = nn.Sequential(*[drawn(draw, size, **how) for _ in range(draw.randint(2, 3))])
    x = spikes(9, 2, *size, seed=seed) * uniform(9, 2, *size)
    return net, x.to(dtype), exactly if dtype == F64 else {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("seed", range(15))
def test_random_nets(seed):
    """By hand, as a program of steps, and as one of sequences."""
    net, x, tolerance = drawn_net(seed)
    twins, turned = [copy.deepcopy(net) for _ in range(3)], net[0].batch_first
    parts = [part.transpose(0, 1) if turned else part for part in x.split(3)]
    compare(twins[0], ExplicitState(net), [x[0], parts[1], x[1], parts[2]], **tolerance)
    steps = to_program(net, x[0, :1])
    compare(twins[1], steps.module(), x, **tolerance)
    sequences = to_program(net, parts[0], batch_axis=0 if turned else 1)
    compare(twins[2], sequences.module(), parts, **tolerance)
    for program in (steps, sequences):
        plain(program)


@pytest.mark.slow  # converting takes seconds
@pytest.mark.parametrize("seed", [0, 3, 4, 5])
def test_random_nets_in_onnxruntime(seed, tmp_path):
    """Of float64 (seed 3) without convolutions, which the runtime has in float32 only."""
    pytest.importorskip("onnxscript")
    net, x, tolerance = drawn_net(seed)
    to_onnx(net, tmp_path / "net.onnx", x[0, :1])
    compare(net, in_onnxruntime(tmp_path / "net.onnx")[1], x, **tolerance)


# -- refusals -------------------------------------------------------------------------------------


class Twice(DelayedLinear):
    def forward(self, x):
        return 2 * super().forward(x)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.past = RecordTensor(1.0, 3.0, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("net", "error", "words"),
    [
        (nn.Linear(2, 2), ValueError, "net must have a module of tritonsyn, but is Linear"),
        (nn.Sequential(layer(Twice, 3, 2)), TypeError, r"net\.0 is a Twice, of which no program"),
        (Keeps(), TypeError, r"net\.past is a RecordTensor"),
    ],
    ids=["none", "own forward", "record"],
)
def test_nets_of_which_there_is_no_program(net, error, words):
    with pytest.raises(error, match=words):
        ExplicitState(net)


def test_not_on_a_tape():
    module = linear()
    with module.unrolled(2):
        module(torch.zeros(1, 3, dtype=F64))
        with pytest.raises(RuntimeError, match="on a tape"):
            ExplicitState(module)


def test_wrong_inputs():
    program = ExplicitState(network())
    x = torch.zeros(2, 8, dtype=F64)
    state = program.initial_state(x)
    with pytest.raises(
        ValueError, match=r"4 tensors of the state \(0.pos_current, .*but 4 tensors"
    ):
        program(x, *state[:-1])
    for wrong in (x[:, :1], x[0], x[None, None]):
        with pytest.raises(
            ValueError, match=r"x has shape .* must have \(B, 8\), or with one axis"
        ):
            program(wrong, *state)
    with pytest.raises(ValueError, match=r"\(B, 3, \.\.\., \.\.\.\)"):
        ExplicitState(build("conv2d, single")[0]).initial_state(torch.zeros(3, 4, 5))
    assert_close(program(x, *state), program(x, *program.initial_state(x)))  # nothing is left


SHAPE = "has shape {wrong}, but must have {right} for an input {x}$"
MISFITS = {
    "batch": (lambda part: part[:1], SHAPE),
    "no batch": (lambda part: part[0], SHAPE),
    "one axis more": (lambda part: part.unsqueeze(-1), SHAPE),
    "no axis": (lambda part: part.sum(), SHAPE),
    "N": (lambda part: part[:, :1], SHAPE),
    "K": (lambda part: part.narrow(min(2, part.ndim - 1), 1, 1), SHAPE),
    "size": (lambda part: part[..., 1:], SHAPE),
    "dtype": (lambda part: part.float(), "must be torch.float64, but is torch.float32$"),
    "spikes": (lambda part: part.bool(), "must be torch.float64, but is torch.bool$"),
    "device": (lambda part: part.to("meta"), "is on meta, but the input is on cpu$"),
    "sparse": (lambda part: part.to_sparse(), "must be dense, but is"),
    "list": (lambda part: part.tolist(), "must be a tensor, but a list was given$"),
    "none": (lambda part: None, "must be a tensor, but a NoneType was given$"),
}
STATES = ["double", "connection, double", "input, single", "output, alpha", "mask, double"]
STATES += ["conv1d, double", "conv2d of inputs, alpha", "delay, linear"]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("whole", [False, True])
def test_states_that_do_not_fit(name, whole):
    """Each tensor is refused by its name, of steps and sequences, and nothing has changed."""
    module, size = build(name)
    program = ExplicitState(nn.Sequential(nn.Identity(), rounded(module) if whole else module))
    x = spikes(3, 2, *size)
    _, *state = program(x[0], *program.initial_state(x[0]))
    expected = program(x[1], *state)
    for i, (label, right) in enumerate(zip(program.state_names, state, strict=True)):
        assert label.startswith("1.")
        for change, words in MISFITS.values():
            wrong = change(right)
            for given in (x[1], x[1:]):
                shapes = {"wrong": getattr(wrong, "shape", ()), "right": right.shape}
                shapes |= {"x": given.shape}
                sizes = {key: re.escape(str(tuple(shape))) for key, shape in shapes.items()}
                match = f"^{re.escape(label)} {words.format(**sizes)}"
                with pytest.raises((TypeError, ValueError), match=match):
                    program(given, *state[:i], wrong, *state[i + 1 :])
    with pytest.raises(ValueError, match=r"^1\..* has shape \(2, .*must have \(1, "):
        program(x[1, :1], *state)
    assert_close(program(x[1], *state), expected, rtol=0, atol=0)


def test_wrong_numbers_of_tensors():
    net, x = Recurrent(), torch.zeros(2, 3, dtype=F64)
    program = ExplicitState(net)
    state = program.initial_state(x, x)
    names = "layers.in.current, layers.back.current, filter.current"
    for given in (state, (x, *state), (x, x, *state[1:]), (x, x, x, *state), (x, x, *state, x)):
        words = rf"3 tensors of the state \({names}\) are needed, but {len(given)} tensors"
        with pytest.raises(ValueError, match=words):
            program(*given)
    program(x, x, *state)


def test_nets_that_take_inputs_or_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.synapse = make("single", dtype=F64)

    class Optional(Net):
        def forward(self, x, z=None):
            return self.synapse(x if z is None else x + z)

    class Any(Net):
        def forward(self, *inputs):
            return self.synapse(sum(inputs))

    x = torch.ones(2, 3, dtype=F64)
    for net, most in (Optional(), 2), (Any(), 4):
        program = ExplicitState(net)
        (state,) = program.initial_state(x)
        for count in range(1, most + 1):
            y, _ = program(*[x] * count, state)
            assert_close(y, count * 2.0 * x, **exactly)
        with pytest.raises(ValueError, match="but 1 tensors"):
            program(state)
    with pytest.raises(ValueError, match="but 4 tensors"):
        ExplicitState(Optional())(x, x, x, state)


def test_a_batch_that_is_another_in_one_part():
    program, x = ExplicitState(Recurrent()), torch.zeros(2, 3, dtype=F64)
    state = program.initial_state(x, x)
    words = r"layers.back.current has shape \(2, 3, 3\), but must have \(1, 3, 3\)"
    with pytest.raises(ValueError, match=words):
        program(x, x[:1], *state)
    with pytest.raises(ValueError, match=r"layers.in.current has shape \(2, .*must have \(1, 3, 5"):
        program(x[:1], x, *state)


class Folded(nn.Module):
    """Applies one layer to each place."""

    def __init__(self):
        super().__init__()
        self.each, self.all = linear(3, 2), linear(8, 2)

    def forward(self, x):
        y = self.each(x.flatten(0, 1))
        return self.all(y.view(len(x), -1))


def test_a_net_may_have_parts_of_different_batches():
    net, x = Folded(), spikes(6, 2, 4, 3)
    state = compare(net, ExplicitState(net), x, **exactly)
    assert [len(part) for part in state] == [8, 2]


def test_inputs_that_are_no_tensors():
    program = ExplicitState(make("single", dtype=F64))
    state = torch.zeros(1, 3, dtype=F64)
    for x in ([[1.0, 0.0, 1.0]], pack_spikes(spikes(4, 1, 3)), torch.zeros(1, 3) + 1j):
        with pytest.raises(TypeError, match=r"^x must be "):
            program(x, state)


def test_a_module_and_one_inside_it():
    """Both have one state, which a program keeps once."""
    layer = linear(3, 3)
    twin = linear(3, 3)
    twin.synapse = layer.synapse
    for modules, words in (
        ({"layer": layer, "inner": layer.synapse}, "net.inner is .* as net.layer.synapse"),
        ({"inner": layer.synapse, "layer": layer}, "net.layer.synapse is .* as net.inner"),
        ({"a": layer, "b": twin}, "net.b.synapse is .* as net.a.synapse"),
    ):
        with pytest.raises(ValueError, match=f"^{words}, but a program cannot have one state"):
            ExplicitState(nn.ModuleDict(modules))


def test_methods_that_a_net_cannot_use():
    net = network()
    net.forward = lambda x: net[0].current_at(x)
    twin = ExplicitState(net)
    twin.net.forward = lambda x: twin.net[0].current_at(x)
    with pytest.raises(AttributeError, match="no current_at: of its modules a net may use forward"):
        twin.initial_state(torch.zeros(2, 8, dtype=F64))


def test_modules_that_a_net_does_not_call():
    net = network()
    net.spare = linear()
    net.forward = lambda x: nn.Sequential.forward(net[:2], x)
    with pytest.raises(ValueError, match="must call"):
        ExplicitState(net).initial_state(torch.zeros(2, 8, dtype=F64))


# -- torch.export ---------------------------------------------------------------------------------


def plain(program):
    """Names of the operators of a program, all of them PyTorch's own."""
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    names = [str(target) for target in targets]
    own = [name for name in names if name.startswith("aten.") or "getitem" in name]
    assert names == own
    return names


@pytest.mark.parametrize("name", ["double", "mask, double", "conv1d of inputs, alpha"])
@pytest.mark.parametrize("sequence", [False, True])
def test_an_exported_program(name, sequence):
    """Of PyTorch's operators, for a batch of any size."""
    module, size = build(name)
    x = spikes(4, 3, 5, *size) if sequence else spikes(12, 5, *size)
    example = x[0, :, :1] if sequence else x[0, :1]
    program = to_program(module, example, batch_axis=int(sequence))
    plain(program)
    compare(module, program.module(), x, **exactly)


@pytest.mark.parametrize("name", ["double", "mask, double", "conv1d of inputs, alpha"])
def test_compiled_once_for_all_batches(name):
    """The second makes the size a symbol. A state of another batch is refused even so.

    In words, but for torch 2.11, which says no more of an error in a graph than that there is one.
    """
    torch._dynamo.reset()  # which remembers sizes
    module, size = build(name)
    program, graphs = ExplicitState(module), CompileCounter()
    compiled = torch.compile(program, backend=graphs, fullgraph=True)
    for batch in (2, 3, 5, 7):
        x = spikes(batch, *size)
        state = program.initial_state(x)
        assert_close(compiled(x, *state), program(x, *state), **exactly)
    assert graphs.frame_count == 2
    words = r"has shape \(.*but must have \(.*for an input"
    if torch.__version__ < "2.12":
        words = "Observed exception"
    with pytest.raises(Exception, match=words):
        compiled(x[:4], *state)


@pytest.mark.parametrize("sequence", [False, True])
def test_compiled_in_one_graph(sequence):
    """Without pointers on the device, and by the tracer of strict exports, too."""
    module, x = linear(kind="alpha"), spikes(4, 2, 3)
    program = ExplicitState(module)
    compiled = torch.compile(program, backend="eager", fullgraph=True)
    compare(module, compiled, x.chunk(2) if sequence else x, **exactly)


VIEWS = "slice", "select.int", "flatten", "squeeze", "movedim", "unbind", "getitem", "reshape"


@pytest.mark.parametrize("name", ["connection, double", "conv2d, single", "delay, linear"])
def test_a_step_moves_each_record_once(name):
    """Besides that, what it makes does not grow with the longest delay."""

    def made(slots):
        module, size = build(name, delay=slots - 1.0)
        program = to_program(module, spikes(2, *size), batch_axis=None)
        values = [
            node.meta["val"].numel()
            for node in program.graph.nodes
            if isinstance(node.meta.get("val"), torch.Tensor)
            if node.op == "call_function" and not any(v in str(node.target) for v in VIEWS)
        ]
        row = 2 * torch.Size(size).numel() * len(ExplicitState(module).state_names)
        return sum(values), row

    (some, row), (more, _) = made(11), made(31)
    assert more - some == 20 * row


SCRIPT = """
import sys
sys.modules["tritonsyn"] = None  # so that importing it raises
import torch
program = torch.export.load("program.pt2").module()
x, state, wanted = torch.load("run.pt")
for x, y in zip(x, wanted):
    found, *state = program(x, *state)
    torch.testing.assert_close(found, y, rtol=1e-6, atol=1e-6)
try:
    import tritonsyn
except ImportError:
    print("without tritonsyn")
"""


@pytest.mark.slow  # starts another Python
def test_a_saved_program_runs_where_tritonsyn_is_not(tmp_path):
    net = network(torch.float32)
    x = spikes(50, 3, 8).float()
    torch.export.save(to_program(net, x[0, :1]), tmp_path / "program.pt2")
    with torch.no_grad():
        wanted = [net(step) for step in x]
    assert any(y.any() for y in wanted)
    torch.save((x, ExplicitState(net).initial_state(x[0]), wanted), tmp_path / "run.pt")
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "without tritonsyn\n"


OWN = ["mask, single", "output, double", "conv1d, single", "conv2d of inputs, alpha"]


@pytest.mark.parametrize("name", [*OWN, "delay, gaussian"])
@pytest.mark.parametrize("sequence", [False, True])
def test_a_program_may_keep_the_state_itself(name, sequence):
    """With tritonsyn's own operators; tests/test_wrappers.py has the other modules."""
    module, size = build(name, capturable=True)
    twin = build(name)[0]
    if name.startswith("conv"):
        module.size = size[1:]
    module.batchsz = 2
    x = spikes(6, 2, *size)
    with torch.no_grad():
        parts = x.chunk(2) if sequence else x
        program = torch.export.export(module, (parts[0],)).module()
        module.clear()
        for part in parts:
            assert_close(program(part), twin(part), **exactly)


@pytest.mark.parametrize("name", ["single", "connection, single", "delay, linear"])
def test_torch_export_says_what_it_needs(name):
    module, size = build(name, batch_size=2)
    with pytest.raises(Exception, match=r"^torch\.export takes .*capturable=True.*ExplicitState"):
        torch.export.export(module, (spikes(2, *size),))


@pytest.mark.parametrize("name", ["double", "mask, single", "conv2d, single", "delay, linear"])
def test_symbolic_traces_are_refused(name):
    """Unless the module is a leaf of the trace."""
    module, size = build(name)
    net = nn.Sequential(module, nn.Tanh())
    with pytest.raises(TypeError, match=r"^x must be a tensor.*is_leaf_module"):
        torch.fx.symbolic_trace(net)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, part, name):
            return part is module or super().is_leaf_module(part, name)

    graph = torch.fx.GraphModule(net, Tracer().trace(net))
    x = spikes(2, *size)
    assert_close(graph(x), build(name)[0](x).tanh(), **exactly)


@pytest.mark.long  # most of a minute of a C++ compiler
def test_compiled_ahead_of_time(tmp_path):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler on this machine")
    net, x = network(torch.float32), spikes(30, 5, 8).float()
    path = str(tmp_path / "net.pt2")
    torch._inductor.aoti_compile_and_package(to_program(net, x[0]), package_path=path)
    program = torch._inductor.aoti_load_package(path)
    compare(net, program, x, rtol=1e-6, atol=1e-6)


# -- ONNX -----------------------------------------------------------------------------------------


def in_onnxruntime(path):
    """The file as a function of tensors."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    names = [given.name for given in session.get_inputs()]

    def run(*tensors):
        arrays = {n: tensor.numpy() for n, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, arrays)]

    return session, run


@pytest.mark.slow  # converting takes seconds
def test_onnx_of_a_step(tmp_path):
    """Thresholds between layers, and many steps with another batch."""
    pytest.importorskip("onnxscript")
    net, x = network(torch.float32), spikes(100, 5, 8, rate=0.6).float()
    path = tmp_path / "net.onnx"
    to_onnx(net, path, x[0, :1])
    session, run = in_onnxruntime(path)
    names = "0.pos_current", "0.neg_current", "2.current", "4.signal"
    assert [given.name for given in session.get_inputs()] == ["input", *names]
    assert [y.name for y in session.get_outputs()] == ["y", *(f"next.{name}" for name in names)]
    assert [given.shape[0] for given in session.get_inputs()] == ["batch"] * 5
    compare(net, run, x, rtol=1e-6, atol=1e-6)
    assert str(tmp_path).encode() not in path.read_bytes()
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.slow
def test_onnx_of_a_sequence(tmp_path):
    pytest.importorskip("onnxscript")
    layer, x = linear(kind="alpha", dtype=torch.float32), spikes(5, 6, 2, 3)
    to_onnx(layer, tmp_path / "layer.onnx", x[0], batch_axis=None)
    session, run = in_onnxruntime(tmp_path / "layer.onnx")
    assert [given.name for given in session.get_inputs()] == ["x", "rise", "current"]
    compare(layer, run, x, rtol=1e-6, atol=1e-6)


def test_a_file_appears_when_it_is_whole(tmp_path, monkeypatch):
    class Onnx:
        class model:  # noqa: N801
            graph = ()

        def save(self, path):
            path.write_bytes(b"half")
            raise OSError("no space left")

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: Onnx())
    path = tmp_path / "net.onnx"
    path.write_bytes(b"whole")
    with pytest.raises(OSError, match="no space"):
        to_onnx(make("single"), path, torch.zeros(1, 3))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"whole"]
