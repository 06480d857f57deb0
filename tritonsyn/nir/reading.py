"""A graph of NIR as a module."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import checks
from ..modules.conv import DelayedConv1d, DelayedConv2d
from ..modules.delay import Delay
from ..modules.linear import DelayedLinear
from ..modules.synapse import AlphaCurrent, DoubleExponentialCurrent, SingleExponentialCurrent
from .units import Array, Units, neuron_of

NodeMap = Mapping[type[Any], Callable[[Any], nn.Module]]
_PRODUCTS = (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d)
_CONVOLUTIONS: dict[type[Any], tuple[Any, Any]] = {
    nir.Conv1d: (DelayedConv1d, nn.Conv1d),
    nir.Conv2d: (DelayedConv2d, nn.Conv2d),
}


def from_nir(
    graph: nir.NIRGraph | str | Path,
    step_time: float,
    node_map: NodeMap | None = None,
    *,
    round_delays: bool = False,
    time_unit: float = 1000.0,
    dtype: torch.dtype | None = None,
) -> fx.GraphModule:
    r"""A graph of NIR as a module that takes steps ``[B, ...]`` and sequences ``[T, B, ...]``.

    * ``LI`` becomes a ``SingleExponentialCurrent``.
    * Two ``LI`` in a row become a ``DoubleExponentialCurrent``, or an ``AlphaCurrent`` where their
      time constants are equal.
    * ``LI``, as above, with ``Delay`` and ``Linear`` or ``Affine`` behind it, in one path or in
      several that add up, become a ``DelayedLinear``: with delays of connections; of inputs if
      there is one such path, of outputs if the ``Delay`` comes after the ``Linear``.
    * The same with ``Conv1d`` or ``Conv2d`` becomes a ``DelayedConv1d`` or ``DelayedConv2d``.
    * ``CubaLIF`` becomes a ``SingleExponentialCurrent``, then the map's ``LIF``.
    * Any other ``Delay`` becomes a ``Delay``.
    * ``Linear``, ``Affine``, ``Conv1d``, ``Conv2d`` and ``Flatten`` become those of ``torch.nn``;
      of these, convolutions take steps only.
    * ``NIRGraph`` becomes the module of that graph.

    A synapse has the charge :math:`Q = R\,\Delta t`, of two ``LI`` the product of both :math:`R`;
    see :mod:`tritonsyn.nir`. Where a node reads the current of a synapse, it reads it at the steps.

    Args:
        graph: the graph, or the name of a file that ``nir.write`` wrote.
        step_time: length of a step :math:`\Delta t`, ms.
        node_map: for other nodes, such as neurons, a function from the node to a module of one
            input and one result, by class, as for ``nirtorch.nir_to_torch``. Its entries come
            before this list, except that ``CubaLIF`` needs one of its own or one for ``LIF``.
        round_delays: delays are rounded to whole steps. Otherwise a ``Delay`` of a signal other
            than a current must be whole steps, because that is unknown between steps.
        time_unit: the unit of time in the graph, ms: 1000 for seconds, as for :func:`to_nir`.
        dtype: of the modules; by default torch's.

    Returns:
        A module of PyTorch's that computes what the graph does, and can be trained further. Each
        member has the name of the first node that it was made of.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, the file is not one of NIR, the
            graph is damaged or has a cycle, or a node has no counterpart; the message names it.
    """
    if isinstance(graph, str | Path):
        graph = _read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be an NIRGraph or a file, but is {checks.shown(graph)}")
    units = Units.of(step_time, time_unit)
    round_delays, dtype = checks.flag("round_delays", round_delays), checks.record_dtype(dtype)
    return _Reader(graph, dict(node_map or {}), units, round_delays, dtype).module()


def _read(path: str | Path) -> Any:
    """The graph in a file."""
    if not Path(path).is_file():
        raise ValueError(f"graph must be an NIRGraph or a file, but there is no file {path}")
    try:
        return nir.read(path)
    except Exception as error:  # of any kind, as what is read
        raise ValueError(f"{path} is no file that nir {nir.version} can read: {error}") from error


class _Layer(NamedTuple):
    """The connections behind a synapse, which add up."""

    delays: str
    product: Any
    """A node of some of the weights."""
    values: dict[str, Array]
    """Of all connections ``weight``, ``delay`` in ms, and ``bias`` if there is one."""
    members: list[str]
    exits: list[str]
    """Those members of which the outputs are added up."""


class _Reader:
    """Makes modules of the nodes of a graph, and one of those that belong together."""

    def __init__(
        self,
        graph: nir.NIRGraph,
        known: NodeMap,
        units: Units,
        round_delays: bool,
        dtype: torch.dtype,
    ) -> None:
        self.known, self.units, self.round_delays, self.dtype = known, units, round_delays, dtype
        self.nodes, edges = _split(graph, known)
        self.before: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.after: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in edges:
            for name in (source, target):
                if name not in self.nodes:
                    raise ValueError(f"the graph has an edge of {name!r}, but no such node")
            self.before[target].append(source)
            self.after[source].append(target)
        for kind in (nir.Input, nir.Output):
            names = [name for name, node in self.nodes.items() if type(node) is kind]
            if len(names) != 1:
                raise ValueError(f"the graph must have one {kind.__name__}, but has {names}")
        self.order = _ordered(self.before)
        self.taken: set[str] = set()

    def module(self) -> fx.GraphModule:
        calls, made = fx.Graph(), nn.ModuleDict()
        signals: dict[str, fx.Node | None] = {}
        for name in self.order:
            if name in self.taken:
                continue
            node = self.nodes[name]
            if type(node) is nir.Input:
                signals[name] = calls.placeholder("x")
                continue
            arriving = [signals[source] for source in self.before[name]]
            terms = [signal for signal in arriving if signal is not None]
            if not terms:
                raise ValueError(f"node {name!r} of the graph has no input")
            x: Any = reduce(lambda a, b: calls.call_function(operator.add, (a, b)), terms)
            if type(node) is nir.Output:
                calls.output(x)
                continue
            if self._is(name, nir.Linear) and _is_identity(node.weight):  # it only adds up
                signals[name] = x
                continue
            attribute = name.replace(".", "_")
            while attribute in made:
                attribute += "_"
            try:
                made[attribute], exits = self._part(name)
            except (TypeError, ValueError, RuntimeError) as error:
                kind = type(node).__name__
                raise ValueError(f"node {name!r} of the graph, {kind}: {error}") from error
            signals.update(dict.fromkeys(exits))  # of several one stands for their sum
            signals[exits[0]] = calls.call_module(attribute, (x,))
        return fx.GraphModule(dict(made), calls)

    def _part(self, name: str) -> tuple[nn.Module, list[str]]:
        """A module that begins with this node, and the nodes of which it gives the sum."""
        if not self._is(name, nir.LI):
            return self._single(self.nodes[name]), [name]
        second = self._alone(name, nir.LI)
        chain = [name] if second is None else [name, second]
        self.taken.update(chain)
        integrators = [self.nodes[each] for each in chain]
        for each in integrators:
            if np.any(each.v_leak) or not each.tau.shape:
                raise ValueError("v_leak must be 0, and each parameter an array with an axis")
        layer = self._layer(integrators, chain[-1])
        if layer is not None:
            self.taken.update(layer.members)
            return self._delayed(integrators, layer), layer.exits
        make, constants = self._physics(integrators)
        shape = integrators[0].tau.shape
        return make(shape, self.units.step, **constants, dtype=self.dtype), chain[-1:]

    def _is(self, name: str, *kinds: type[Any]) -> bool:
        """Whether a node is of one of these kinds, and not the map's."""
        kind = type(self.nodes[name])
        return kind in kinds and kind not in self.known

    def _alone(self, name: str, *kinds: type[Any]) -> str | None:
        """What is behind this node, if it is of these kinds and the edge the only one of both."""
        behind = self.after[name]
        fits = len(behind) == 1 and self._is(behind[0], *kinds) and self.before[behind[0]] == [name]
        return behind[0] if fits else None

    # -- synapses and layers ------------------------------------------------------------------

    def _physics(
        self, integrators: Sequence[nir.LI], only: Callable[[Array], Array] = np.asarray
    ) -> tuple[Any, dict[str, Any]]:
        """The class of a synapse and its constants, of these among the values of its nodes."""
        amplitude = np.prod([only(each.r).astype(np.float64) for each in integrators], axis=0)
        taus = [only(each.tau).astype(np.float64) * self.units.time_unit for each in integrators]
        equal, constants = taus[0] == taus[-1], {"spike_charge": amplitude * self.units.step}
        if len(taus) == 1 or equal.all():
            make: Any = SingleExponentialCurrent if len(taus) == 1 else AlphaCurrent
            constants["time_constant"] = taus[0]
        elif equal.any():
            raise ValueError("both time constants must be equal in all synapses, or in none")
        else:
            make = DoubleExponentialCurrent
            constants |= {"tc_decay": np.maximum(*taus), "tc_rise": np.minimum(*taus)}
        return make, {name: _constant(values) for name, values in constants.items()}

    def _layer(self, integrators: Sequence[nir.LI], end: str) -> _Layer | None:
        """What stands behind a synapse, if that is a layer of this synapse."""
        branches = [self._branch(name, end) for name in self.after[end]]
        exits = [branch[-1] for branch in branches if branch]
        if len(exits) < len(branches) or len({tuple(self.after[name]) for name in exits}) != 1:
            return None
        products = [self.nodes[name] for name in exits]
        first, shape = products[0], integrators[0].tau.shape
        convolves = type(first) in _CONVOLUTIONS
        constants = [value for each in integrators for value in (each.tau, each.r)]
        uniform = all(map(_is_of_channels, constants))
        alike = len({_geometry(node) for node in products}) == 1
        fits = len(shape) == first.weight.ndim - 1
        if not (uniform and alike and fits and (convolves or first.weight.shape[-1:] == shape)):
            return None
        weights = np.stack([node.weight for node in products])
        members = [name for branch in branches for name in branch]
        biases = [node.bias for node in products if hasattr(node, "bias")]
        values = {"weight": weights.sum(0), "bias": np.sum(biases, axis=0)}
        if len(members) == len(exits) == 1 and not convolves:
            return self._delayed_outputs(exits[0], values)
        delays = [self._times(branch[0], shape) for branch in branches]
        if not all(each.shape == shape and _is_of_channels(each) for each in delays):
            return None
        if len(branches) == 1:
            values["delay"] = _of_channels(delays[0])
            return _Layer("input", first, values, members, exits)
        present = weights != 0
        if (present.sum(0) > 1).any() or weights.shape[2] != len(delays[0]):
            return None
        times = [_of_channels(each).reshape(-1, *[1] * (weights.ndim - 3)) for each in delays]
        values["delay"] = np.where(present, np.stack(times)[:, None], 0).sum(0)
        return _Layer("connection", first, values, members, exits)

    def _branch(self, name: str, end: str) -> list[str]:
        """A delay, if there is one, and the product behind it; nothing if others take part."""
        if self.before[name] != [end]:
            return []
        if self._is(name, *_PRODUCTS):
            return [name]
        product = self._alone(name, *_PRODUCTS) if self._is(name, nir.Delay) else None
        return [name, product] if product else []

    def _delayed_outputs(self, product: str, values: dict[str, Array]) -> _Layer | None:
        """A product with a delay behind it, and a bias behind that, if there is one."""
        delay = self._alone(product, nir.Delay)
        if delay is None or not self._is(product, nir.Linear):
            return None
        members, shift = [product, delay], self._alone(delay, nir.Affine)
        if shift is not None and _is_identity(self.nodes[shift].weight):
            members.append(shift)
            values["bias"] = self.nodes[shift].bias
        values["delay"] = self._times(delay, values["weight"].shape[:1])
        return _Layer("output", self.nodes[product], values, members, members[-1:])

    def _times(self, name: str, shape: tuple[int, ...]) -> Array:
        """The delays of a node, ms; zeros where it has none."""
        node = self.nodes[name]
        return _times(node, self.units)[0] if type(node) is nir.Delay else np.zeros(shape)

    def _delayed(self, integrators: Sequence[nir.LI], layer: _Layer) -> nn.Module:
        make, constants = self._physics(integrators, _of_channels)
        values = {name: each for name, each in layer.values.items() if name != "bias" or each.any()}
        options: dict[str, Any] = {f"{name}_init": _filling(each) for name, each in values.items()}
        options |= {"delays": layer.delays, "delay": self.units.ceiling(values["delay"])}
        options |= {"bias": "bias" in values, "dtype": self.dtype}
        options["synapse"] = make.partialconstructor(**constants)
        outputs, _, *kernel = layer.product.weight.shape
        inputs, step = integrators[0].tau.shape[0], self.units.step
        made: Any
        if type(layer.product) in _CONVOLUTIONS:
            options |= _convolution(layer.product)
            made = _CONVOLUTIONS[type(layer.product)][0](inputs, outputs, kernel, step, **options)
        else:
            made = DelayedLinear(inputs, outputs, step, **options)
        if self.round_delays:
            made.round_delays_()
        return made

    # -- other nodes --------------------------------------------------------------------------

    def _single(self, node: Any) -> nn.Module:
        """The module of a node by itself."""
        kind = type(node)
        if kind in self.known:
            made = self.known[kind](node)
            if not isinstance(made, nn.Module):
                raise TypeError(f"node_map must give a module, but gives {checks.shown(made)}")
            return made
        if isinstance(node, nir.NIRGraph):
            how = (self.known, self.units, self.round_delays, self.dtype)
            return _Reader(node, *how).module()
        if kind is nir.Delay:
            return self._delay(node)
        if kind is nir.Flatten:
            if (size := node.input_type["input"]) is None:
                raise ValueError("its input_type must be known")
            axes = len(size)
            return nn.Flatten(*[int(dim) % axes - axes for dim in (node.start_dim, node.end_dim)])
        if kind in (nir.Linear, nir.Affine) and node.weight.ndim == 2:
            outputs, inputs = node.weight.shape
            return self._with_values(nn.Linear(inputs, outputs, kind is nir.Affine), node)
        if kind in _CONVOLUTIONS:
            outputs, inputs, *kernel = node.weight.shape
            options = _convolution(node)
            inputs *= options["groups"]
            made = _CONVOLUTIONS[kind][1](inputs, outputs, kernel, **options)
            return self._with_values(made, node)
        raise ValueError("it has no counterpart here: give a function to a module in node_map")

    def _with_values(self, module: nn.Module, node: Any) -> nn.Module:
        """The module in this dtype, with the node's weights and bias."""
        module = module.to(self.dtype)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(getattr(node, name)))
        return module

    def _delay(self, node: nir.Delay) -> nn.Module:
        times, whole = _times(node, self.units)
        if not whole and not self.round_delays:
            raise ValueError(
                "its delays are between steps, where the signal is unknown: read with "
                "round_delays=True, or with another step_time"
            )
        options: dict[str, Any] = {
            "delay": self.units.ceiling(times),
            "delay_init": _filling(times),
        }
        options |= {"interp": "nearest", "dtype": self.dtype}
        made = Delay(times.shape, self.units.step, **options)
        made.round_delays_()
        return made


def _split(graph: nir.NIRGraph, known: NodeMap) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges, with a synapse and a neuron for each CubaLIF that the map does not know."""
    nodes = {name: _with_arrays(node) for name, node in graph.nodes.items()}
    edges = [(source, target) for source, target in graph.edges]
    for name, node in list(nodes.items()):
        if type(node) is nir.CubaLIF and nir.CubaLIF not in known:
            synapse = f"{name}_synapse"
            while synapse in nodes:
                synapse += "_"
            nodes[synapse] = nir.LI(node.tau_syn, node.w_in, np.zeros_like(node.tau_syn))
            nodes[name] = nir.LIF(tau=node.tau_mem, **neuron_of(node))
            edges = [(a, synapse if b == name else b) for a, b in edges] + [(synapse, name)]
    return nodes, edges


def _with_arrays(node: Any) -> Any:
    """The node, with arrays in place of tensors, which some libraries put there."""
    tensors = {name: each for name, each in vars(node).items() if isinstance(each, Tensor)}
    if tensors:
        node = copy.copy(node)
        for name, tensor in tensors.items():
            setattr(node, name, tensor.detach().cpu().numpy())
    return node


def _ordered(before: dict[str, list[str]]) -> list[str]:
    """The nodes in an order in which each comes after those that it reads."""
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ValueError(
            f"the graph has a cycle, {' -> '.join(error.args[1])}, which a module that takes whole "
            "sequences cannot run: put it into a NIRGraph of its own, with an entry in node_map"
        ) from None


def _times(node: nir.Delay, units: Units) -> tuple[Array, bool]:
    """The delays of a node, ms, and whether all are whole steps."""
    given = torch.from_numpy(node.delay)
    if not (given >= 0).all():
        raise ValueError(f"delay must be at least 0, but holds {given[~(given >= 0)][0]}")
    dtype = given.dtype if given.is_floating_point() else torch.float64
    times, whole = units.rounded(given.double() * units.time_unit, dtype)
    return times, bool(whole.all())


def _filling(values: Array) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.from_numpy(values).to(tensor)


def _constant(values: Array) -> float | Tensor:
    """A number if all values are the same."""
    first: float = values.flat[0].item()
    return first if (values == first).all() else torch.from_numpy(values)


def _is_identity(weight: Array) -> bool:
    return np.array_equal(weight, np.eye(len(weight)))


def _of_channels(values: Array) -> Array:
    """The values at the first position, the axes after the first."""
    return values.reshape(len(values), -1)[:, 0]


def _is_of_channels(values: Array) -> bool:
    """Whether values are the same at all positions."""
    rows = values.reshape(len(values), -1)
    return bool((rows == rows[:, :1]).all())


def _geometry(node: Any) -> tuple[Any, ...]:
    """What products that add up in a layer have in common."""
    options = _convolution(node) if type(node) in _CONVOLUTIONS else {}
    return (node.weight.shape, *options.values())


def _convolution(node: Any) -> dict[str, Any]:
    """The options of a convolution, as torch takes them."""
    made: dict[str, Any] = {"groups": int(node.groups)}
    for name in ("stride", "padding", "dilation"):
        value, axes = getattr(node, name), node.weight.ndim - 2
        if not isinstance(value, str):
            value = tuple([int(each) for each in np.broadcast_to(np.asarray(value), (axes,))])
        made[name] = value
    return made
