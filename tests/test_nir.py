"""Models as graphs of NIR: NIR's equations, round trips through files, and what is refused."""

import math
import time
from itertools import pairwise

import numpy as np
import pytest
import synapses
import torch
from scipy.integrate import solve_ivp
from torch import nn

from tritonsyn import AlphaCurrent, Delay, DelayedConv1d, DelayedConv2d, DelayedLinear, init

nir = pytest.importorskip("nir")
from tritonsyn.nir import from_nir, to_nir  # noqa: E402

STEP = 0.5  # ms
STEPS = 14


class Solution:
    """Signals of a graph by NIR's own equations, for impulses at the steps.

    A signal is an array of impulses, one for each step, or a function of time, and of the step
    where it is known in which the time is. Leaky integrators are solved numerically between steps.
    """

    def __init__(self, graph, x, step):
        self.graph, self.x, self.step = graph, x, step

    def outputs(self):
        (name,) = self.graph.outputs
        signal = self.signal(name)
        return np.stack([signal(n * self.step) for n in range(len(self.x))])

    def signal(self, name):
        node = self.graph.nodes[name]
        if isinstance(node, nir.Input):
            return self.x
        arriving = [self.signal(source) for source, target in self.graph.edges if target == name]
        if all(map(callable, arriving)):
            return self.behind(node, lambda t, n=None: sum(signal(t, n) for signal in arriving))
        (impulses,) = arriving
        if isinstance(node, nir.Linear):
            return impulses @ node.weight.T
        assert isinstance(node, nir.LI)
        return self.integrated(node, impulses, lambda t, n: 0.0)

    def behind(self, node, signal):
        if isinstance(node, nir.LI):
            return self.integrated(node, np.zeros((len(self.x), *node.r.shape)), signal)
        if isinstance(node, nir.Delay):
            at = list(np.ndindex(node.delay.shape))
            return lambda t, n=None: np.reshape(
                [signal(t - node.delay[place])[place] for place in at], node.delay.shape
            )
        if isinstance(node, nir.Conv1d):
            values = [torch.tensor(value) for value in (node.weight, node.bias)]
            where = (node.stride, node.padding, node.dilation)
            convolve = nn.functional.conv1d
            return lambda t, n=None: convolve(torch.tensor(signal(t)), *values, *where).numpy()
        if isinstance(node, nir.Output):
            return signal
        return lambda t, n=None: node.weight @ signal(t) + getattr(node, "bias", 0.0)

    def integrated(self, node, impulses, current):
        shape, pieces = node.r.shape, []
        v = np.zeros(shape)
        for n, impulse in enumerate(impulses):

            def slope(t, v, n=n):
                rest = node.v_leak - v.reshape(shape)
                return ((rest + node.r * current(t, n)) / node.tau).ravel()

            v = v + node.r * impulse * self.step / node.tau
            between = (n * self.step, (n + 1) * self.step)
            how = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12, "dense_output": True}
            solved = solve_ivp(slope, between, v.ravel(), **how)
            pieces.append(solved.sol)
            v = solved.y[:, -1].reshape(shape)

        def value(t, n=None):
            n = math.floor(t / self.step + 1e-6) if n is None else n
            return pieces[n](t).reshape(shape) if n >= 0 else np.zeros(shape)

        return value


def physics(kind, **options):
    return synapses.CLASSES[kind].partialconstructor(**{**synapses.PHYSICS[kind], **options})


def dense(kind="single", delays="connection", whole=True, inputs=4, outputs=3, **options):
    how = {"dtype": torch.float64, "synapse": physics(kind), "delay": 3.0, **options}
    layer = DelayedLinear(inputs, outputs, STEP, delays=delays, **how)
    if whole:
        layer.round_delays_()
    return layer


def sequence(*shape, dtype=torch.float64):
    return synapses.spikes(STEPS, 2, *shape, seed=1).to(dtype)


def is_li(node):
    return type(node) is nir.LI


def exactly_nir(model, x, **how):
    """Asserts that the model gives what NIR's equations give for its graph, in each sample."""
    graph = to_nir(model, x[0], **how)
    y = model(x).detach().numpy()
    for sample in range(x.shape[1]):
        unit = how.get("time_unit", 1000.0)
        expected = Solution(graph, x[:, sample].numpy(), STEP / unit).outputs()
        np.testing.assert_allclose(y[:, sample], expected, rtol=1e-7, atol=1e-8)
    assert np.abs(y).max() > 0.1


# -- NIR's equations ------------------------------------------------------------------------------


@synapses.every_kind
def test_a_synapse_solves_the_equations(kind):
    names = set(synapses.PHYSICS[kind]) - {"spike_charge"}
    constants = {name: torch.tensor([6.0, 7.0, 8.5]) for name in names}
    if kind == "double":
        constants["tc_rise"] = torch.tensor([1.0, 3.0, 0.7])
    model = synapses.make(kind, 3, STEP, dtype=torch.float64, **constants)
    exactly_nir(model, sequence(3))
    if kind == "double":
        rise, decay = [n.tau for n in to_nir(model, torch.zeros(1, 3)).nodes.values() if is_li(n)]
        assert (rise < decay).all()


@synapses.every_kind
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_a_delayed_layer_solves_the_equations(kind, delays, bias):
    exactly_nir(dense(kind, delays, bias=bias), sequence(4))


@synapses.every_kind
@pytest.mark.parametrize("delays", ["input", "output"])
def test_delays_between_steps_solve_the_equations_where_one_node_holds_them(kind, delays):
    layer = dense(kind, delays, whole=False)
    assert (layer.delay / STEP - (layer.delay / STEP).round()).abs().max() > 0.1
    exactly_nir(layer, sequence(4))


@pytest.mark.parametrize("delays", ["connection", "input"])
def test_delays_that_are_read_at_steps_are_written_as_these(delays):
    layer = dense("single", delays, synapse=physics("single", interp_tol=0.2), min_delay=0.5)
    with torch.no_grad():
        layer.delay += synapses.uniform(*layer.delay.shape, low=-0.19, high=0.19)
    exactly_nir(layer, sequence(4))


def test_products_before_a_synapse_and_units_of_time_solve_the_equations():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), synapses.make("alpha", 3, STEP)).double()
    exactly_nir(model, sequence(4), time_unit=1.0)


def test_a_convolution_solves_the_equations():
    how = {"delay": 2.0, "padding": 1, "stride": 2, "bias": True, "dtype": torch.float64}
    layer = DelayedConv1d(2, 3, 3, STEP, synapse=physics("double"), **how)
    layer.round_delays_()
    exactly_nir(layer, sequence(2, 5))


# -- round trips ----------------------------------------------------------------------------------


SMALL = init.constant(0.7)


def scaled(factor):
    """A tensor of constants for four synapses."""
    return factor * torch.tensor([1.0, 1.5, 2.0, 0.8])


def whatever(layer):
    """The layer, with weights where the mask has no connections."""
    nn.init.uniform_(layer.weight)
    return layer


def outside(layer):
    """The layer, with delays out of their bounds."""
    with torch.no_grad():
        layer.delay.copy_(torch.where(layer.delay < 2.0, 0.3, 7.1))
    return layer


class Branches(nn.Module):
    """Modules that are called and added up."""

    def __init__(self):
        super().__init__()
        self.first = dense(dtype=torch.float32, outputs=4)
        self.other = nn.Linear(4, 4)
        self.last = dense("double", dtype=torch.float32, bias=True)

    def forward(self, x):
        return self.last(self.first(x) + self.other(x))


MODELS = {
    "single": lambda: synapses.make("single", 4, STEP),
    "double": lambda: synapses.make("double", 4, STEP, tc_decay=scaled(9.0), tc_rise=scaled(2.0)),
    "alpha": lambda: synapses.make("alpha", (4,), STEP, spike_charge=scaled(-3.0)),
    "learned": lambda: synapses.make("single", 4, STEP, time_constant=nn.Parameter(scaled(5.0))),
    "connection": lambda: dense(dtype=torch.float32),
    "masked": lambda: whatever(dense("alpha", dtype=torch.float32, fan_in=2, bias=True)),
    "input": lambda: dense("double", "input", False, dtype=torch.float32, bias=True),
    "output": lambda: dense("double", "output", False, dtype=torch.float32),
    "bias of outputs": lambda: dense("single", "output", False, dtype=torch.float32, bias=True),
    "undelayed": lambda: dense(delay=0.0, dtype=torch.float32),
    "bounds": lambda: outside(dense(min_delay=1.0, dtype=torch.float32)),
    "delay": lambda: Delay(4, STEP, delay=3.0, delay_init=init.constant(1.5)),
    "branches": Branches,
    "net": lambda: nn.Sequential(
        nn.Linear(4, 4),
        nn.Sequential(dense(dtype=torch.float32), nn.Dropout()),
        dense("single", "input", inputs=3, dtype=torch.float32),
        Delay(3, STEP, delay=1.0, delay_shape=1, delay_init=init.constant(1.0)),
        nn.Linear(3, 5, bias=False),
    ),
}


def cleared(model):
    for module in model.modules():
        if hasattr(module, "clear"):
            module.clear()
    return model


def same(model, read, x):
    """Asserts that both give the same for a sequence and in steps."""
    y = cleared(model).eval()(x)
    assert y.abs().max() > 0.1
    torch.testing.assert_close(cleared(read)(x), y, rtol=1e-6, atol=1e-6)
    steps = torch.stack([cleared(read)(x[0]), *[read(row) for row in x[1:]]])
    torch.testing.assert_close(steps, y, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_computes_what_was_written(name, tmp_path):
    torch.manual_seed(0)
    model, x = MODELS[name](), sequence(4, dtype=torch.float32)
    graph = to_nir(model, x[0])
    same(model, from_nir(graph, STEP), x)
    nir.write(tmp_path / "model.nir", graph)
    same(model, from_nir(tmp_path / "model.nir", STEP), x)
    same(model, from_nir(str(tmp_path / "model.nir"), STEP), x)


@pytest.mark.parametrize("delays", ["connection", "input"])
@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions_are_read_as_such(axes, delays, tmp_path):
    kind, size = (DelayedConv1d, (7,)) if axes == 1 else (DelayedConv2d, (7, 6))
    how = {"delay": 2.0, "padding": "same", "bias": True, "delays": delays, "dilation": 2}
    constants = physics("double", tc_decay=torch.tensor([5.0, 8.0]))
    layer = kind(2, 3, 3, STEP, synapse=constants, **how)
    layer.round_delays_()
    model = nn.Sequential(layer, nn.Flatten(-axes - 1), nn.Linear(3 * math.prod(size), 2))
    x = sequence(2, *size, dtype=torch.float32)
    nir.write(tmp_path / "model.nir", to_nir(model, x[0]))
    read = from_nir(tmp_path / "model.nir", STEP)
    same(model, read, x)
    (found,) = [module for module in read.children() if isinstance(module, kind)]
    torch.testing.assert_close(found.delay, layer.delay)
    assert found.delays == delays


def test_convolutions_without_delays_are_those_of_torch():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 4))
    x = synapses.uniform(5, 2, 7, 8).float()
    torch.testing.assert_close(from_nir(to_nir(model, x), STEP)(x), model(x))


def test_a_layer_is_one_module_again():
    layer = dense("alpha", dtype=torch.float32, bias=True)
    (read,) = from_nir(to_nir(layer, torch.zeros(1, 4)), STEP).children()
    assert isinstance(read, DelayedLinear) and isinstance(read.synapse, AlphaCurrent)
    for name in ("weight", "delay", "bias"):
        torch.testing.assert_close(getattr(read, name), getattr(layer, name))
    assert read.max_delay == layer.delay.max()


def test_double_precision_goes_both_ways():
    model, x = dense("double", "input", False), sequence(4)
    read = from_nir(to_nir(model, x[0]), STEP, dtype=torch.float64)
    torch.testing.assert_close(read(x), model(x), rtol=1e-12, atol=1e-12)


def test_half_precision_is_written_in_single():
    layer = dense("double", "input", dtype=torch.bfloat16, bias=True)
    graph = to_nir(layer, torch.zeros(1, 4))
    arrays = [value for node in graph.nodes.values() for value in vars(node).values()]
    kinds = {array.dtype for array in arrays if getattr(array, "dtype", np.dtype(int)).kind == "f"}
    assert kinds == {np.dtype("float32")}
    x = sequence(4, dtype=torch.float32)
    torch.testing.assert_close(from_nir(graph, STEP)(x), layer.float()(x))


class Wired(nn.Module):
    """A synapse and what may stand behind it, called in some way."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.synapse = synapses.make("single", 4, STEP)
        self.delay = Delay(4, STEP, delay=2.0, delay_init=init.constant(1.0))
        self.late = Delay(4, STEP, delay=0.5, delay_init=init.constant(0.5))
        self.one, self.two, self.all = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        with torch.no_grad():  # different inputs
            self.one.weight[:, :2] = 0.0
            self.two.weight[:, 2:] = 0.0

    def forward(self, x):
        return self.way(self, self.synapse(x), x)


WAYS = {
    "one delay for two products": lambda m, i, x: m.one(d := m.delay(i)) + m.two(d),
    "a connection of two delays": lambda m, i, x: m.one(m.delay(i)) + m.all(i),
    "products that go apart": lambda m, i, x: m.late(m.one(m.delay(i))) + m.two(i),
    "a product of more": lambda m, i, x: m.one(m.delay(i)) + m.two(i + x),
    "a delay of more": lambda m, i, x: m.one(m.delay(i + x)),
    "a delayed product of more": lambda m, i, x: m.one(m.delay(i) + x),
    "a current read as it is": lambda m, i, x: m.one(m.delay(i)) + i,
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_no_layer_is_read_node_by_node(name):
    model, x = Wired(WAYS[name]), sequence(4, dtype=torch.float32)
    read = from_nir(to_nir(model, x[0]), STEP)
    assert not any(isinstance(module, DelayedLinear) for module in read.modules())
    same(model, read, x)


class Convolved(nn.Module):
    """Convolutions of the current of a line, one of them delayed."""

    def __init__(self, tau=5.0, delay=1.0, kernel=3):
        super().__init__()
        self.synapse = synapses.make("single", (2, 5), STEP, time_constant=tau)
        self.delay = Delay((2, 5), STEP, delay=3.0, delay_init=lambda d: torch.full_like(d, delay))
        self.one = nn.Conv1d(2, 3, 3, padding=1)
        self.two = nn.Conv1d(2, 3, kernel, padding=kernel // 2)
        with torch.no_grad():  # different inputs
            self.one.weight[:, 0] = 0.0
            self.two.weight[:, 1] = 0.0

    def forward(self, x):
        current = self.synapse(x)
        return self.one(self.delay(current)) + self.two(current)


def test_convolutions_of_one_form_are_a_layer_and_others_are_not():
    several = Convolved()
    several.delay.delay.data[1, 2] = 2.0
    unlike = {
        "constants": Convolved(tau=synapses.uniform(2, 5, low=2.0, high=9.0)),
        "delays": several,
        "kernels": Convolved(kernel=1),
    }
    x = sequence(2, 5, dtype=torch.float32)
    for name, model in {"alike": Convolved(), **unlike}.items():
        read = from_nir(to_nir(model, x[0]), STEP)
        found = any(isinstance(module, DelayedConv1d) for module in read.modules())
        assert found == (name == "alike"), name
        torch.testing.assert_close(*[torch.stack([net(row) for row in x]) for net in (read, model)])


def test_a_large_layer_is_written_and_read_in_seconds(tmp_path):
    layer = DelayedLinear(256, 256, 1.0, synapse=physics("double"), delay=25.0)
    layer.round_delays_()
    start = time.process_time()
    graph = to_nir(layer, torch.zeros(1, 256))
    nir.write(tmp_path / "large.nir", graph)
    (read,) = from_nir(tmp_path / "large.nir", 1.0).children()
    assert time.process_time() - start < 5
    assert sum(type(node) is nir.Linear for node in graph.nodes.values()) == 26 + 1
    torch.testing.assert_close(read.delay, layer.delay)


# -- neurons --------------------------------------------------------------------------------------


class Neuron(nn.Module):
    """A leaky integrate-and-fire neuron, in steps and sequences."""

    def __init__(self, tau, r):
        super().__init__()
        self.tau, self.r = tau, r

    def forward(self, x):
        if x.ndim == 2:
            v = getattr(self, "v", 0.0)
            v = v + (self.r * x - v) * STEP / self.tau
            z = (v > 1).float()
            self.v = v - z
            return z
        return torch.stack([self(row) for row in x])

    def clear(self):
        self.v = 0.0


def as_lif(neuron):
    parameters = (neuron.tau / 1000, neuron.r, 0.0, 1.0)
    return nir.LIF(*(np.array(parameter) for parameter in parameters))


def of_lif(node):
    return Neuron(1000 * node.tau.flat[0].item(), node.r.flat[0].item())


@pytest.mark.parametrize("kind", list(synapses.CLASSES))
def test_a_synapse_and_a_neuron_are_one_node_and_two_modules(kind, tmp_path):
    synapse = synapses.make(kind, 3, STEP)
    model = nn.Sequential(nn.Linear(4, 3), synapse, Neuron(4.0, 8.0))
    nn.init.uniform_(model[0].weight, 0.1, 1.0)
    x = sequence(4, dtype=torch.float32)
    graph = to_nir(model, x[0], {Neuron: as_lif})
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    if kind == "single":
        assert sorted(kinds) == ["Affine", "CubaLIF", "Input", "Output"]
        (node,) = [node for node in graph.nodes.values() if type(node) is nir.CubaLIF]
        np.testing.assert_allclose(node.w_in, synapse.spike_charge / STEP)
        np.testing.assert_allclose(node.tau_syn, synapse.time_constant / 1000)
    else:
        assert kinds.count("LI") == 2 and kinds.count("LIF") == 1
    nir.write(tmp_path / "model.nir", graph)
    read = from_nir(tmp_path / "model.nir", STEP, {nir.LIF: of_lif})
    spikes = cleared(model)(x)
    assert spikes.mean() > 0.05
    assert torch.equal(cleared(read)(x), spikes)


def test_a_current_that_others_read_keeps_its_own_node():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.synapse, self.neuron = synapses.make("single", 3, STEP), Neuron(8.0, 4.0)

        def forward(self, x):
            current = self.synapse(x)
            return self.neuron(current) + current

    model, x = Both(), sequence(3, dtype=torch.float32)
    graph = to_nir(model, x[0], {Neuron: as_lif})
    assert {type(node) for node in graph.nodes.values()} >= {nir.LI, nir.LIF}
    same(model, from_nir(graph, STEP, {nir.LIF: of_lif}), x)


def test_a_map_comes_before_the_table():
    class Mine(nn.Module):
        def forward(self, x):
            return 2 * x

    graph = to_nir(synapses.make("single", 3, STEP), torch.zeros(1, 3))
    read = from_nir(graph, STEP, {nir.LI: lambda node: Mine()})
    assert torch.equal(read(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    scale = {nn.Identity: lambda module: nir.Scale(np.full(3, 5.0))}
    made = to_nir(nn.Sequential(nn.Identity()), torch.zeros(1, 3), scale)
    assert [type(node).__name__ for node in made.nodes.values()] == ["Input", "Scale", "Output"]


def test_graphs_within_graphs():
    inner = to_nir(dense(dtype=torch.float32), torch.zeros(1, 4))
    nodes = {"input": nir.Input(np.array([4])), "inner": inner, "output": nir.Output(np.array([3]))}
    edges = [("input", "inner"), ("inner", "output")]
    x = sequence(4, dtype=torch.float32)
    keyed = {"type_check": False} if hasattr(nir.NIRGraph, "check_types") else {}
    read = from_nir(nir.NIRGraph(nodes, edges, **keyed), STEP)
    torch.testing.assert_close(read(x), from_nir(inner, STEP)(x))


# -- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delays", ["connection", "input", "output"])
def test_rounding_is_that_of_the_module(delays):
    model, x = dense("double", delays, False, dtype=torch.float32), sequence(4, dtype=torch.float32)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = to_nir(model, x[0, :1], round_delays=True)  # another batch than that of the past
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    unrounded = cleared(model)(x)
    model.round_delays_()
    same(model, from_nir(graph, STEP), x)
    assert (cleared(model)(x) - unrounded).abs().max() > 0.01


def test_rounding_while_reading():
    model = dense("double", "input", False, dtype=torch.float32)
    x = sequence(4, dtype=torch.float32)
    read = from_nir(to_nir(model, x[0]), STEP, round_delays=True)
    model.round_delays_()
    same(model, read, x)
    graph = nir.NIRGraph.from_list(nir.Delay(np.array([0.0012, 0.0024])))
    with pytest.raises(ValueError, match="between steps"):
        from_nir(graph, STEP)
    (delay,) = from_nir(graph, STEP, round_delays=True).children()
    assert delay.delay.tolist() == [1.0, 2.5]


def test_whole_steps_are_those_of_reads():
    """Up to four units in the last place of the dtype in which the delays are."""
    unit = torch.finfo(torch.float32).eps * 16  # of numbers in 16 to 32
    layer = dense(dtype=torch.float32, inputs=4, delay=25.0)
    with torch.no_grad():
        layer.delay[:] = 24.0 + unit * torch.tensor([-4.0, 0.0, 1.0, 4.0])
    graph = to_nir(layer, torch.zeros(1, 4), time_unit=1.0)
    delays = [node.delay for node in graph.nodes.values() if isinstance(node, nir.Delay)]
    assert all((delay == 24.0).all() for delay in delays) and delays
    with torch.no_grad():
        layer.delay[0, 0] = 24.0 + 5 * unit
    with pytest.raises(ValueError, match="its delays are between steps"):
        to_nir(layer, torch.zeros(1, 4))
    for miss in (-5, -4, 4, 5):
        graph = nir.NIRGraph.from_list(nir.Delay(np.float32([24.0 + miss * unit])))
        if abs(miss) == 4:
            (delay,) = from_nir(graph, STEP, time_unit=1.0).children()
            assert delay.delay.item() == 24.0
        else:
            with pytest.raises(ValueError, match="between steps"):
                from_nir(graph, STEP, time_unit=1.0)


def test_delays_that_are_integers():
    graph = nir.NIRGraph.from_list(nir.Delay(np.array([3, 0])))
    (delay,) = from_nir(graph, 1.0, time_unit=1.0).children()
    assert delay.delay.tolist() == [3.0, 0.0]


BETWEEN = {
    "min_delay": {"min_delay": 0.7},
    "max_delay": {"delay": 1.9999996, "delay_init": init.constant(2.5)},
}


@pytest.mark.parametrize("bound", BETWEEN)
@pytest.mark.parametrize("delays", ["connection", "input", "output", None])
def test_bounds_between_steps_are_named(bound, delays):
    """Where rounded delays lie at them; rounding works with a bound that is whole steps."""
    options = {"dtype": torch.float64, "delay": 3.0, "delay_init": SMALL, **BETWEEN[bound]}
    if delays is None:
        model = Delay(4, STEP, **options)
    else:
        model = dense(delays=delays, whole=False, **options)
    words = f"{bound} is {getattr(model, bound)}, .* set it to a multiple of 0.5"
    with pytest.raises(ValueError, match=words):
        to_nir(model, torch.zeros(1, 4), round_delays=True)
    setattr(model, bound, 2.0)
    x = sequence(4)
    read = from_nir(to_nir(model, x[0], round_delays=True), STEP, dtype=torch.float64)
    layers = [m for m in read.modules() if isinstance(m, (Delay, DelayedLinear))]
    assert len(layers) == 1 and (layers[0].delay == 2.0).all()
    model.round_delays_()
    same(model, read, x)


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "between steps": (lambda: dense(whole=False), "its delays are between steps.*round_delays_"),
    "signal between steps": (
        lambda: Delay(4, STEP, delay=3.0, delay_init=SMALL), "its delays are between steps",
    ),
    "gaussian": (lambda: Delay(4, STEP, delay=3.0, interp="gaussian"), "Gaussian blurs"),
    "two synapses": (
        lambda: nn.Sequential(*[synapses.make("single", 4, STEP) for _ in range(2)]),
        "1, SingleExponentialCurrent: it reads the current of another synapse",
    ),
    "activation": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "1, Tanh, has no"),
    "steps": (
        lambda: nn.Sequential(dense(), synapses.make("single", 3, 1.0)), "one step_time.*0.5, 1.0",
    ),
    "unknown": (lambda: nn.Sequential(Neuron(3.0, 1.0)), "torch.fx cannot trace it"),
    "twice": (lambda: nn.Sequential(*[Delay(4, STEP, delay=0.0)] * 2), "0 is called 2 times"),
    "constants": (
        lambda: synapses.make("single", 4, STEP, time_constant=nn.Parameter(scaled(5.0))),
        "time_constant must be finite and greater than 0",
    ),
    "groups": (lambda: nn.Conv1d(4, 4, 1, groups=2), r"nir counts, makes \(4, 6\) of \(2, 6\)"),
    "square": (lambda: nn.Conv2d(4, 4, (1, 3)), r"makes \(4, 6, 4\) of .* makes \(4, 6, 6\)"),
    "same": (lambda: nn.Conv1d(4, 4, 2, padding="same"), "as many zeros before as behind"),
    "padding": (lambda: nn.Conv1d(4, 4, 1, padding_mode="circular"), "zeros only"),
    "matrix": (lambda: nn.Linear(6, 4), r"of \(4, 6\), but .* of \(6,\)"),
    "batch": (lambda: nn.Flatten(0), "no batch"),
}  # fmt: skip
EXAMPLES = {
    "groups": (1, 4, 6), "same": (1, 4, 6), "padding": (1, 4, 6), "matrix": (1, 4, 6),
    "square": (1, 4, 6, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_say_is_refused(name):
    make, words = REFUSED[name]
    model = make()
    if name == "constants":
        with torch.no_grad():
            model.time_constant[1] = -1.0
    with pytest.raises(ValueError, match=words):
        to_nir(model.float(), torch.zeros(EXAMPLES.get(name, (1, 4))))


def test_other_ways_of_computing_are_refused():
    class Other(nn.Module):
        def __init__(self, way):
            super().__init__()
            self.layer, self.way = nn.Linear(4, 4), way

        def forward(self, x):
            return self.way(self.layer(x), x)

    ways = {
        "what different ones return.*mul": lambda y, x: y * x,
        "what different ones return.*add": lambda y, x: y + y,
        "different ones return.*add_1": lambda y, x: (y + x) + y,
        "different ones return.*sub": lambda y, x: y - x,
        "one tensor": lambda y, x: (y, x),
    }
    for words, way in ways.items():
        with pytest.raises(ValueError, match=words):
            to_nir(Other(way), torch.zeros(1, 4))


def test_wrong_arguments_of_writing():
    model = dense()
    with pytest.raises(ValueError, match="example must be the input of one step"):
        to_nir(model, torch.zeros(5, 1, 4))
    with pytest.raises(TypeError, match="model must be a module"):
        to_nir([], torch.zeros(1, 4))
    with pytest.raises(TypeError, match="example"):
        to_nir(model, (1, 4))
    with pytest.raises(ValueError, match="time_unit must be greater than 0"):
        to_nir(model, torch.zeros(1, 4), time_unit=0.0)
    with pytest.raises(ValueError, match="0, Neuron: module_map must give a node of NIR"):
        to_nir(nn.Sequential(Neuron(1.0, 1.0)), torch.zeros(1, 4), {Neuron: lambda module: 3})


def test_wrong_nodes_of_a_map():
    how = {Neuron: lambda module: nir.Linear(np.ones((4, 5)))}
    with pytest.raises(ValueError, match=r"makes \(4,\) of \(4,\), but .* \(4,\) of \(5,\)"):
        to_nir(nn.Sequential(Neuron(1.0, 1.0)), torch.zeros(1, 4), how)
    how = {Neuron: lambda module: nir.LIF(*[np.ones(3)] * 4)}
    with pytest.raises(ValueError, match=r"0, Neuron: .*broadcast"):
        to_nir(nn.Sequential(Neuron(1.0, 1.0)), torch.zeros(1, 4), how)


def test_a_state_that_cannot_be_copied():
    model = nn.Sequential(nn.Linear(4, 4), Neuron(4.0, 2.0))
    model[1].v = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(ValueError, match="reset or detach the states"):
        to_nir(model, torch.zeros(1, 4), {Neuron: as_lif})


def test_graphs_that_hold_tensors():
    tensors = [torch.full((2,), value) for value in (0.005, 20.0, 0.0)]
    graph = nir.NIRGraph.from_list(nir.LI(*tensors), nir.Linear(torch.eye(2) * 3))
    x = sequence(2, dtype=torch.float32)
    expected = 3 * synapses.make("single", 2, STEP, spike_charge=10.0, time_constant=5.0)(x)
    torch.testing.assert_close(from_nir(graph, STEP)(x), expected)
    assert isinstance(graph.nodes["li"].tau, torch.Tensor)


def lif(size=2):
    return nir.LIF(*[np.ones(size)] * 4)


def li(tau=0.01, v_leak=0.0, size=2):
    return nir.LI(np.full(size, tau), np.ones(size), np.full(size, v_leak))


def chain(*nodes):
    names = [f"n{i}" for i in range(len(nodes))]
    ends = {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2]))}
    path = ["input", *names, "output"]
    named = dict(zip(names, nodes, strict=True))
    return nir.NIRGraph({**ends, **named}, list(pairwise(path)))


def damaged(nodes, edges):
    """A graph that no constructor would make."""
    graph = chain(li())
    graph.nodes, graph.edges = {**graph.nodes, **nodes}, edges
    return graph


WRONG = {
    "neuron": (lambda: chain(lif()), "node 'n0' of the graph, LIF: .* in node_map"),
    "cuba": (lambda: chain(nir.CubaLIF(*[np.ones(2)] * 5)), "'n0' of the graph, LIF: "),
    "leak": (lambda: chain(li(v_leak=0.1)), "'n0' of the graph, LI: v_leak must be 0"),
    "scalar": (lambda: damaged({"n0": li(size=())}, chain(li()).edges), "array with an axis"),
    "negative": (lambda: chain(li(tau=-1.0)), "'n0' of the graph, LI: time_constant .*greater"),
    "nan": (lambda: chain(li(tau=math.nan)), "LI: time_constant must be finite"),
    "mixed": (
        lambda: chain(li(), nir.LI(np.array([0.01, 0.02]), np.ones(2), np.zeros(2))),
        "equal in all synapses, or in none",
    ),
    "cycle": (
        lambda: damaged({}, [("input", "n0"), ("n0", "n0"), ("n0", "output")]), "cycle, n0 -> n0",
    ),
    "edge": (lambda: damaged({}, [("input", "n0"), ("n0", "else")]), "edge of 'else'"),
    "no input": (lambda: damaged({}, [("n0", "output")]), "node 'n0' of the graph has no input"),
    "past": (
        lambda: chain(nir.Delay(np.array([0.0, -0.01]))), "Delay: delay must be at least 0.*-0.01",
    ),
    "delay": (lambda: chain(nir.Delay(np.array([0.0, math.nan]))), "Delay: delay must .*nan"),
    "outputs": (
        lambda: damaged({"more": nir.Output(np.array([2]))}, chain(li()).edges), "one Output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_graphs_are_refused_by_the_name_of_the_node(name):
    make, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        from_nir(make(), STEP)


def test_wrong_arguments_of_reading(tmp_path):
    with pytest.raises(TypeError, match="graph must be an NIRGraph or a file"):
        from_nir(3, STEP)
    with pytest.raises(ValueError, match="there is no file"):
        from_nir(tmp_path / "none.nir", STEP)
    with pytest.raises(ValueError, match="step_time must be greater than 0"):
        from_nir(chain(li()), 0.0)
    with pytest.raises(ValueError, match="LIF: node_map must give a module"):
        from_nir(chain(lif()), STEP, {nir.LIF: lambda node: 3})


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "model.nir"
    path.write_bytes(b"no graph at all")
    with pytest.raises(ValueError, match=r"model\.nir is no file that nir .* can read"):
        from_nir(path, STEP)
    nir.write(path, chain(li()))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="can read"):
        from_nir(path, STEP)
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("weights", data=np.ones(3))
    with pytest.raises(ValueError, match="can read"):
        from_nir(path, STEP)


class Named(nn.Module):
    """A product and a synapse with the names of nodes that a trace and a graph add themselves."""

    def __init__(self):
        super().__init__()
        self.x = synapses.make("single", 4, STEP, spike_charge=10.0, dtype=torch.float64)
        self.input = nn.Linear(4, 3, dtype=torch.float64)
        self.output = synapses.make("single", 3, STEP, spike_charge=10.0, dtype=torch.float64)

    def forward(self, x):
        return self.output(self.input(self.x(x)))


def test_modules_may_have_the_names_of_nodes_that_are_added():
    model, x = Named(), sequence(4)
    graph = to_nir(model, x[0])
    assert len(graph.inputs) == len(graph.outputs) == 1 and len(graph.nodes) == 5
    same(model, from_nir(graph, STEP, dtype=torch.float64), x)


def test_nodes_whose_names_are_one_attribute_are_told_apart():
    parts = li(0.01), nir.Linear(3 * np.eye(2)), li(0.02)
    graph, names = chain(*parts), {"n0": "a.b", "n2": "a_b"}
    graph.nodes = {names.get(name, name): node for name, node in graph.nodes.items()}
    graph.edges = [tuple(names.get(name, name) for name in edge) for edge in graph.edges]
    x = 10 * sequence(2, dtype=torch.float32)
    same(from_nir(chain(*parts), STEP), from_nir(graph, STEP), x)


def test_models_that_are_no_function_of_one_tensor_are_refused():
    class Two(nn.Module):
        def forward(self, x, gain=1.0):
            return x * gain

    with pytest.raises(ValueError, match="model must have one input, but also takes gain"):
        to_nir(Two(), torch.zeros(1, 4))
    with pytest.raises(TypeError, match="0 must return a tensor, but returns"):
        to_nir(nn.Sequential(nn.GRU(4, 4)), torch.zeros(1, 4))


def test_padding_may_be_a_word():
    for word, size in (("valid", 0), ("same", 1)):
        graph = to_nir(nn.Conv1d(2, 2, 3, padding=word), torch.zeros(1, 2, 6))
        (node,) = [each for each in graph.nodes.values() if type(each) is nir.Conv1d]
        assert tuple(np.ravel(node.padding)) == (size,)
