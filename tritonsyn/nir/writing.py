"""A model as a graph of NIR."""

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import nir
import numpy as np
import torch
from nirtorch.torch_tracer import NIRTorchTracer
from torch import Tensor, fx, nn

from .. import checks
from ..modules.conv import DelayedConv1d, DelayedConv2d
from ..modules.delay import Delay
from ..modules.delays import LearnedDelays
from ..modules.linear import DelayedLinear
from ..modules.synapse import (
    AlphaCurrent,
    DoubleExponentialCurrent,
    ExponentialCurrent,
    SingleExponentialCurrent,
)
from ..values import compute_dtype, is_distributed
from .units import Array, Units, neuron_of

ModuleMap = Mapping[type[nn.Module], Callable[[Any], Any]]
Shape = tuple[int, ...]
Names = tuple[str, ...]
"""Nodes of which the outputs add up to a signal."""

_ADDITIONS = (operator.add, operator.iadd, torch.add)


def to_nir(
    model: nn.Module,
    example: Tensor,
    module_map: ModuleMap | None = None,
    *,
    round_delays: bool = False,
    time_unit: float = 1000.0,
) -> nir.NIRGraph:
    r"""A model as a graph of NIR, which computes what the model computes.

    * ``SingleExponentialCurrent``: ``LI``; with a neuron that is a ``LIF`` behind it, ``CubaLIF``.
    * ``DoubleExponentialCurrent``: ``LI`` of the rise, then ``LI`` of the decay.
    * ``AlphaCurrent``: two equal ``LI``, one after the other.
    * ``Delay``: ``Delay``.
    * ``DelayedLinear``: the synapse; then for each length of the delays a ``Delay`` and a
      ``Linear``, or ``Affine`` with the bias, which add up. Delays of inputs: one ``Delay``, then
      ``Linear``. Of outputs: ``Linear``, then ``Delay``.
    * ``DelayedConv1d``, ``DelayedConv2d``: the same with ``Conv1d`` or ``Conv2d``.
    * ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Flatten``: ``Linear`` or ``Affine``,
      ``Conv1d``, ``Conv2d``, ``Flatten``.

    The first ``LI`` of a synapse has :math:`R = Q / \Delta t`, and the second :math:`R = 1`; see
    :mod:`tritonsyn.nir`. With ``time_unit`` as that of the graph, all is exact for impulses at the
    steps, and delays of a ``DelayedLinear``'s inputs or outputs also between steps. What only
    affects learning (``spread``, ``strategy``, what requires a gradient) is not in the graph, nor
    are the past and weights of 0.

    Args:
        model: a module of those above, or any that calls them one after another or adds up what
            they return, as ``nn.Sequential`` does; ``nn.Identity`` and ``nn.Dropout`` are left out.
            It stays as it is: a copy runs.
        example: an input of one step, ``[B, ...]``, from which shapes are learned.
        module_map: for further modules, such as neurons, a function from the module to its node,
            by class, as for ``nirtorch.torch_to_nir``. Parameters without axes are repeated for
            each neuron.
        round_delays: delays are rounded to whole steps, in the copy and as
            :meth:`~tritonsyn.DelayedLinear.round_delays_` does it; a bound between steps that stops
            one there is refused. Otherwise delays that NIR cannot express between steps are.
        time_unit: the unit of time in the graph, ms: 1000, seconds, as most libraries have it. 1
            for milliseconds, the model's step for a library that counts in steps.

    Returns:
        The graph, with nodes named after the modules; ``nir.write`` writes it to a file.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or something in the model has no
            counterpart in NIR; the message names the module and the reason.
    """
    known = dict(module_map or {})
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, but is {checks.shown(model)}")
    checks.check_real("example", example)
    checks.flag("round_delays", round_delays)
    _check_whole(model)
    try:
        model = copy.deepcopy(model).eval()
    except RuntimeError as error:
        raise ValueError(
            "model cannot be copied: reset or detach the states of its modules, and make pruning "
            f"permanent ({error})"
        ) from error
    traced = _traced(model, (*known, *_WRITERS))
    ours: list[Any] = [
        m for m in traced.modules() if isinstance(m, ExponentialCurrent | LearnedDelays)
    ]
    steps = {module.dt for module in ours}
    if len(steps) > 1:
        raise ValueError(f"modules of a model must have one step_time, but have {sorted(steps)}")
    units = Units.of(steps.pop() if steps else 1.0, time_unit)
    for module in ours:
        module.clear()
        if round_delays and isinstance(module, LearnedDelays):
            module.round_delays_()
    with torch.no_grad():
        _Shapes(traced).run(example)
        return _Writer(traced, known, units, round_delays).graph()


def _check_whole(model: nn.Module) -> None:
    """Raises ``ValueError`` where this process has only parts of the model."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_distributed(tensor):
            raise ValueError(
                f"{name} is a DTensor, of which this process has a part: load the full state into "
                "a model of one process, and write that"
            )


def _traced(model: nn.Module, leaves: tuple[type[nn.Module], ...]) -> fx.GraphModule:
    """The calls of these modules that the model makes."""
    root = nn.Sequential(model) if isinstance(model, leaves) else model
    try:
        return fx.GraphModule(root, NIRTorchTracer(leaves).trace(root))
    except Exception as error:  # of any kind: the modules run
        raise ValueError(
            "model must only call modules and add up what they return, and each of its modules "
            f"must be known or be in module_map, but torch.fx cannot trace it: {error}"
        ) from error


class _Shapes(fx.Interpreter):
    """Runs a model and notes the shape of a sample at each place."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape[1:])
        elif n.op == "call_module":
            raise TypeError(f"{n.target} must return a tensor, but returns {checks.shown(value)}")
        return value


class _Writer:
    """Makes nodes and edges of the calls of a traced model, one after another."""

    def __init__(
        self, traced: fx.GraphModule, known: ModuleMap, units: Units, round_delays: bool
    ) -> None:
        self.traced, self.known, self.units = traced, known, units
        self.round_delays = round_delays
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.signals: dict[fx.Node, Names] = {}

    def graph(self) -> nir.NIRGraph:
        for call in self.traced.graph.nodes:
            if call.users or call.op == "output":
                self.signals[call] = self._written(call)
        self._fuse()
        return nir.NIRGraph(self.nodes, self.edges)

    def _written(self, call: fx.Node) -> Names:
        if call.op == "placeholder":
            if "input" in self.nodes:
                raise ValueError(f"model must have one input, but also takes {call.name}")
            return self.add("input", nir.Input(np.array(call.meta["shape"])), ())
        sources = [name for each in call.all_input_nodes for name in self.signals[each]]
        if call.op == "output":
            return self._output(call, sources)
        if call.op == "call_function" and call.target in _ADDITIONS:
            if len(call.args) == 2 == len(call.all_input_nodes) and not call.kwargs:
                if len(set(sources)) == len(sources):  # NIR has an edge once
                    return tuple(sources)
        if call.op != "call_module":
            raise ValueError(
                "model must only call modules and add up what different ones return, but has "
                f"{call.format_node()}"
            )
        return self._module(call, sources)

    def _output(self, call: fx.Node, sources: list[str]) -> Names:
        (result,) = call.args
        if not isinstance(result, fx.Node):
            raise ValueError(f"model must return one tensor, but returns {result}")
        shape = result.meta["shape"]
        if len(sources) > 1 and len(shape) == 1:
            # Not every reader adds up what arrives at an output.
            sources = list(self.add("sum", nir.Linear(np.eye(*shape, dtype=np.float32)), sources))
        return self.add("output", nir.Output(np.array(shape)), sources)

    def _module(self, call: fx.Node, sources: list[str]) -> Names:
        module = self.traced.get_submodule(str(call.target))
        same = (call.op, call.target)  # a trace ends in a node whose target is "output"
        calls = sum((other.op, other.target) == same for other in self.traced.graph.nodes)
        if calls > 1 and not type(module).__module__.startswith("torch.nn"):
            raise ValueError(f"{call.target} is called {calls} times, but nodes share no state")
        shape, name = call.all_input_nodes[0].meta["shape"], call.name.lstrip("_")
        try:
            for kind in type(module).__mro__:
                if kind in self.known:
                    node = _repeated(self.known[kind](module), shape)
                    _check_sizes(node, shape, call.meta["shape"])
                    return self.add(name, node, sources)
                if kind in _WRITERS:
                    place = _Place(self, name, sources, shape, call.meta["shape"])
                    return _WRITERS[kind](place, module)
        except ValueError as error:
            raise ValueError(f"{call.target}, {type(module).__name__}: {error}") from error
        raise ValueError(
            f"{call.target}, {type(module).__name__}, has no counterpart in NIR that is known: "
            "give a function from the module to its node in module_map"
        )

    def add(self, name: str, node: Any, sources: Sequence[str]) -> Names:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def _fuse(self) -> None:
        """Makes one node of a synapse of one time constant and a neuron that alone reads it."""
        for name, node in list(self.nodes.items()):
            before = [source for source, target in self.edges if target == name]
            if type(node) is not nir.LIF or len(before) != 1:
                continue
            (synapse,) = before
            sources = [source for source, target in self.edges if target == synapse]
            users = [target for source, target in self.edges if source == synapse]
            fits = type(self.nodes[synapse]) is nir.LI and users == [name]
            if fits and not any(type(self.nodes[s]) is nir.LI for s in sources):
                self.nodes[name] = _cuba(self.nodes.pop(synapse), node)
                self.edges = [edge for edge in self.edges if synapse not in edge]
                self.edges += [(source, name) for source in sources]


def _cuba(synapse: nir.LI, neuron: nir.LIF) -> nir.CubaLIF:
    how = neuron_of(neuron)
    return nir.CubaLIF(tau_syn=synapse.tau, w_in=synapse.r, tau_mem=neuron.tau, **how)


def _repeated(node: Any, shape: Shape) -> Any:
    """The node that a map gave, its parameters repeated where they have no axes."""
    if not isinstance(node, nir.NIRNode):
        raise ValueError(f"module_map must give a node of NIR, but gives {checks.shown(node)}")
    if type(node) not in (nir.LIF, nir.LI, nir.IF, nir.I, nir.CubaLIF, nir.Threshold):
        return node
    filled = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name, None)
        if field.init and isinstance(value, np.ndarray | np.number | Tensor):
            array = np.asarray(value.detach() if isinstance(value, Tensor) else value)
            filled[field.name] = np.broadcast_to(array, shape).copy()
    return dataclasses.replace(node, **filled)


class _Place:
    """Where the nodes of a module go: names, sources, shapes of a sample before and behind."""

    def __init__(
        self, writer: _Writer, name: str, sources: Sequence[str], shape: Shape, result: Shape
    ) -> None:
        self.writer, self.name, self.units = writer, name, writer.units
        self.sources, self.shape, self.result = tuple(sources), shape, result

    def put(self, node: Any, sources: Names, suffix: str = "") -> Names:
        return self.writer.add(self.name + suffix, node, sources)

    def synapse(self, synapse: Any, suffix: str = "") -> Names:
        """The integrators of a synapse."""
        synapse.check_constants()
        if any(type(self.writer.nodes[source]) is nir.LI for source in self.sources):
            raise ValueError(
                "it reads the current of another synapse, and in NIR does so between steps, too: "
                "both are one synapse of two time constants, DoubleExponentialCurrent"
            )
        dtype = _as_numpy(synapse.component_records()[0].storage.dtype)
        charge = _filled_in(synapse.spike_charge, synapse.shape, self.shape)
        amplitude, names = charge / self.units.step, self.sources
        taus = _time_constants(synapse)
        for i, tau in enumerate(taus):
            tau = _filled_in(tau, synapse.shape, self.shape) / self.units.time_unit
            arrays = [tau, amplitude, np.zeros(self.shape)]
            node = nir.LI(*(array.astype(dtype) for array in arrays))
            rise = "_rise" if i + 1 < len(taus) else ""
            names = self.put(node, names, suffix + rise)
            amplitude = np.ones(self.shape)
        return names

    def delay(self, times: Array, dtype: Any, sources: Names, suffix: str) -> Names:
        """A delay, ms, of each element; none where all are 0."""
        if not times.any():
            return sources
        return self.put(nir.Delay((times / self.units.time_unit).astype(dtype)), sources, suffix)


def _as_numpy(dtype: torch.dtype) -> Any:
    """The dtype in which values of this one are written: NumPy has no bfloat16."""
    return np.float64 if dtype == torch.float64 else np.float32


def _time_constants(synapse: ExponentialCurrent) -> tuple[Any, ...]:
    if isinstance(synapse, DoubleExponentialCurrent):
        return synapse.tc_rise, synapse.tc_decay
    constant = synapse.time_constant
    return (constant, constant) if isinstance(synapse, AlphaCurrent) else (constant,)


def _filled_in(value: Any, shape: Shape, whole: Shape) -> Array:
    """Values that broadcast to the first axes of a shape, on all of its axes."""
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64).expand(*shape)
    return tensor.reshape(*shape, *[1] * (len(whole) - len(shape))).expand(*whole).numpy()


def _write_synapse(place: _Place, synapse: Any) -> Names:
    _check_step(place, synapse.shape)
    return place.synapse(synapse)


def _check_step(place: _Place, shape: Shape) -> None:
    if len(place.shape) != len(shape):
        raise ValueError(f"example must be the input of one step, but arrives as {place.shape}")


def _write_delay(place: _Place, module: Delay) -> Names:
    _check_step(place, module.shape)
    if module.interp == "gaussian" and module.sigma > 0:
        raise ValueError(
            "a Gaussian blurs the signal, which no delay of NIR does: set interp to 'nearest'"
        )
    times = np.broadcast_to(_times(place, module), place.shape)
    return place.delay(times, _as_numpy(module.delay.dtype), place.sources, "")


def _times(place: _Place, module: Any, between: bool = False) -> Array:
    """The delays of a module as they count, ms: whole steps, or also between them."""
    delays = module.delay.detach().cpu().double().clamp(module.min_delay, module.max_delay)
    tolerance = 0.0 if isinstance(module, Delay) else module.synapse.delay_rule().tolerance
    times, whole = place.units.rounded(delays, module.delay.dtype, tolerance)
    round_delays = place.writer.round_delays
    if whole.all() or (between and not round_delays):
        return times
    if not round_delays:
        raise ValueError(
            "its delays are between steps, where NIR knows no interpolation: call round_delays_() "
            "and look at what it costs, or write with round_delays=True"
        )
    bounds = {name: getattr(module, name) for name in ("min_delay", "max_delay")}
    name = min(bounds, key=lambda name: abs(bounds[name] - times[~whole][0]))
    raise ValueError(
        f"{name} is {bounds[name]}, and so delays that are rounded may still be between steps: set "
        f"it to a multiple of {place.units.step}"
    )


def _write_layer(place: _Place, layer: Any) -> Names:
    _check_step(place, (1,) * (layer.step_axes - 1))
    one_node = isinstance(layer, DelayedLinear) and layer.delays != "connection"
    times = _times(place, layer, between=one_node)
    weight, bias = _weights(layer)
    currents = place.synapse(layer.synapse, "_synapse")
    if layer.delays == "output":
        names = place.put(_product(place, layer, weight, None), currents, "_weight")
        names = place.delay(times, weight.dtype, names, "_delay")
        if bias is None:
            return names
        return place.put(nir.Affine(np.eye(len(bias), dtype=bias.dtype), bias), names, "_bias")
    exits: Names = ()
    for suffix, delays, part in _branches(layer, times, weight, place.units.step):
        delays = _filled_in(delays, place.shape[:1], place.shape)
        delayed = place.delay(delays, weight.dtype, currents, f"_delay{suffix}")
        exits += place.put(_product(place, layer, part, bias), delayed, f"_weight{suffix}")
        bias = None  # which is added once
    return exits


def _branches(
    layer: Any, times: Array, weight: Array, step: float
) -> Iterator[tuple[str, Array, Array]]:
    """A suffix, the delays of the inputs, ms, and the weights that these count for."""
    if layer.delays == "input":
        yield "", times, weight
        return
    steps = np.round(times / step).astype(int)
    for k in np.unique(steps[weight != 0]) if weight.any() else (0,):
        yield f"_{k}", np.asarray(k * step), np.where(steps == k, weight, 0)


def _weights(module: Any) -> tuple[Array, Array | None]:
    """The weights of all connections, and the bias if there is one."""
    weight = module.weight
    if getattr(module, "mask", None) is not None:
        weight = torch.where(module.mask, weight, 0.0)
    return _array(weight), None if module.bias is None else _array(module.bias)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", compute_dtype(tensor.dtype)).numpy().copy()


def _write_product(place: _Place, module: Any) -> Names:
    return place.put(_product(place, module, *_weights(module)), place.sources)


def _product(place: _Place, module: Any, weight: Array, bias: Array | None) -> Any:
    """The node of a module's weights, or of some of them."""
    if weight.ndim > 2:
        node = _convolution(module, weight, bias, place.shape[1:])
    else:
        node = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    _check_sizes(node, place.shape, place.result)
    return node


def _check_sizes(node: Any, shape: Shape, result: Shape) -> None:
    """Raises ``ValueError`` where a node says that its sizes are others."""
    if isinstance(node, nir.NIRGraph):
        return
    sizes = [next(iter(types.values())) for types in (node.input_type, node.output_type)]
    if any(size is None for size in sizes):
        return
    taken, made = (tuple([int(n) for n in size]) for size in sizes)
    if (taken, made) != (shape, result):
        raise ValueError(
            f"it makes {result} of {shape}, but its node, as the package nir counts, makes {made} "
            f"of {taken}"
        )


def _convolution(module: Any, weight: Array, bias: Array | None, size: Shape) -> Any:
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise ValueError("NIR pads with zeros only")
    bias = np.zeros(len(weight), weight.dtype) if bias is None else bias
    padding = _padding(module.padding, module.dilation, weight.shape[2:])
    options = (module.stride, padding, module.dilation)
    if len(size) == 1:
        return nir.Conv1d(size[0], weight, *[each[0] for each in options], module.groups, bias)
    return nir.Conv2d(size, weight, *options, module.groups, bias)


def _padding(padding: Any, dilation: Shape, kernel: Shape) -> Shape:
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(zeros % 2 for zeros in total):
            raise ValueError("NIR has as many zeros before as behind, but padding 'same' has not")
        return tuple(zeros // 2 for zeros in total)
    return (padding,) * len(kernel) if isinstance(padding, int) else tuple(padding)


def _write_flatten(place: _Place, module: nn.Flatten) -> Names:
    axes = [dim % (len(place.shape) + 1) - 1 for dim in (module.start_dim, module.end_dim)]
    if min(axes) < 0:
        raise ValueError("NIR has no batch that could be flattened")
    return place.put(nir.Flatten({"input": np.array(place.shape)}, *axes), place.sources)


_WRITERS: dict[type[nn.Module], Callable[[_Place, Any], Names]] = {
    SingleExponentialCurrent: _write_synapse,
    DoubleExponentialCurrent: _write_synapse,
    AlphaCurrent: _write_synapse,
    Delay: _write_delay,
    DelayedLinear: _write_layer,
    DelayedConv1d: _write_layer,
    DelayedConv2d: _write_layer,
    nn.Linear: _write_product,
    nn.Conv1d: _write_product,
    nn.Conv2d: _write_product,
    nn.Flatten: _write_flatten,
    nn.Identity: lambda place, module: place.sources,
    nn.Dropout: lambda place, module: place.sources,
}
