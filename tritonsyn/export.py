"""Nets with synapses as programs that need no tritonsyn: plain operators, the state as tensors.

Such a program is made of the delays, weights and constants as they are now. A connection is a tap:
it reads a whole number of steps back, with the decay between steps in its weight.
"""

import copy
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .checks import check_device, check_real, misshapen
from .modules.conv import DelayedConv1d, DelayedConv2d
from .modules.delay import Delay
from .modules.linear import DelayedLinear
from .modules.state import Stateful, stateful
from .modules.synapse import ExponentialCurrent
from .ops.conv import convolve, kernel_over_time
from .system import written_whole
from .values import Dynamics, compute_dtype

__all__ = ["ExplicitState", "to_onnx", "to_program"]

Tensors = Sequence[Tensor]
Size = tuple[int, ...]


class ExplicitState(nn.Module):
    """A net that takes its state and returns it: ``(x, *state) -> (y, *state)``.

    The net is a module of tritonsyn, or any module that calls some and keeps no other state. It is
    copied: parameters and constants are frozen at their present values, and the past is left
    behind. The copy computes forward only, from PyTorch's own operators. It can be exported and
    compiled, and the exported program runs without tritonsyn.

    A module of tritonsyn may be called with a step or with a sequence, as always. A graph is for
    one number of steps: longer sequences go through it in parts, each with the state of the last.

    The tensors of the state are named after the module's place in the net and the record, such as
    ``0.current``; :attr:`state_names` lists them in order. The batch is their first axis, and K
    observations (of delays up to K - 1 steps) are in the order of time, the oldest first:

    * Of a synapse of ``shape``: ``current``; or ``pos_current``, ``neg_current``; or ``rise``,
      ``current``; ``[B, *shape]`` each.
    * Of a layer of N inputs: the same, ``[B, N, K]`` each; if all delays are whole steps only
      ``current`` has the K, and the others are ``[B, N]``.
    * Of a convolution of C channels: the same, ``[B, C, K, *size]``, or without the K.
    * Of a :class:`Delay` of N: ``signal``, ``[B, N, K]``.

    They are float64 for records in float64, and float32 otherwise.

    Args:
        net: the net. Call ``eval()`` first where that matters to other modules.

    Raises:
        TypeError, ValueError: there is no module of tritonsyn in the net, or one of which no such
            program can be made, or the net has a part of one in a second place.

    Example:
        >>> synapse = tritonsyn.SingleExponentialCurrent(2, 1.0, spike_charge=10.0, time_constant=5.0)
        >>> net = ExplicitState(synapse)
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> y, *state = net(x, *net.initial_state(x))
        >>> y
        tensor([[2., 0.]])
        >>> net.state_names
        ('current',)
    """  # noqa: E501

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        modules: dict[int, tuple[str, Stateful]] = {}
        for path, module in stateful(net):
            modules.setdefault(id(module), (path, module))
        if not modules:
            raise ValueError(f"net must have a module of tritonsyn, but is {type(net).__name__}")
        _check_apart(modules.values())
        parts = {key: _part(path, module) for key, (path, module) in modules.items()}
        # A copy that has the parts wherever the net has the modules.
        self.net = copy.deepcopy(net, dict(parts))
        self.training = net.training
        self._parts = tuple(parts.values())
        self._counts = _counts_of_inputs(net)
        self.state_names = tuple([name for part in self._parts for name in part.names])
        """Names of the tensors of the state, in order."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs and the next state, from the inputs and the state.

        Args:
            tensors: the inputs of the net, then the tensors of the state.

        Returns:
            The output of the net, or its outputs if they are a tuple, and the tensors of the state.

        Raises:
            TypeError, ValueError: there are too few tensors or too many, an input does not fit, or
                a tensor of the state has another shape, dtype or device than
                :meth:`initial_state` gives it for these inputs.
        """
        count = len(self.state_names)
        if len(tensors) - count not in self._counts:
            raise ValueError(
                f"the inputs and {count} tensors of the state ({', '.join(self.state_names)}) are "
                f"needed, but {len(tensors)} tensors were given"
            )
        return self._called(tensors[:-count], tensors[-count:])

    def initial_state(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The cleared state, for inputs like these.

        Args:
            inputs: inputs of the net, of a step or a sequence; their values do not matter.

        Returns:
            Zeros for each of :attr:`state_names`, of the batch and on the device of the inputs.

        Raises:
            TypeError, ValueError: an input does not fit.
        """
        with torch.no_grad():
            found = self._called(inputs, None)
        return tuple([torch.zeros_like(part) for part in found[-len(self.state_names) :]])

    def _called(self, inputs: Tensors, state: Tensors | None) -> tuple[Tensor, ...]:
        rest = iter(() if state is None else state)
        try:
            for part in self._parts:
                part.held = None if state is None else [next(rest) for _ in part.names]
            y = self.net(*inputs)
            after: list[Tensor] = []
            for part in self._parts:
                if part.held is None:
                    raise ValueError("net must call each of its modules of tritonsyn")
                after += part.held
        finally:
            for part in self._parts:
                part.held = None
        return (*(y if isinstance(y, tuple) else (y,)), *after)


def _check_apart(modules: Iterable[tuple[str, Stateful]]) -> None:
    """None of these modules is in another, or has a module with state in common with it."""
    places: dict[Stateful, str] = {}
    for path, module in modules:
        for inner, each in module.named_modules():
            if isinstance(each, Stateful):
                place = ".".join(filter(None, ("net", path, inner)))
                if (first := places.setdefault(each, place)) != place:
                    raise ValueError(
                        f"{place} is the same module as {first}, but a program cannot have one "
                        "state in two places: leave one out, or give each a state of its own"
                    )


def _counts_of_inputs(net: nn.Module) -> range:
    """How many inputs a net may be given."""
    parameters = inspect.signature(net.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    least = max(sum(p.default is p.empty for p in named), 1)
    most = sys.maxsize if any(p.kind == p.VAR_POSITIONAL for p in parameters) else len(named)
    return range(least, most + 1)


# -- modules as expressions -------------------------------------------------------------------


class _Part(nn.Module):
    """What a module computes, from a state that it holds during a call of the net."""

    held: list[Tensor] | None = None
    names: tuple[str, ...]

    def __init__(self, module: Any, dtype: torch.dtype, shape: Size, axes: int) -> None:
        super().__init__()
        self.dtype, self.shape, self.axes = dtype, shape, axes
        self.batch_first: bool = module.batch_first

    def forward(self, x: Tensor) -> Tensor:
        sequence = check_real("x", x).ndim == 2 + len(self.shape) + self.axes
        turned = sequence and self.batch_first
        steps = x.transpose(0, 1) if turned else x if sequence else x.unsqueeze(0)
        end = 2 + len(self.shape)
        if steps.ndim != end + self.axes or tuple(steps.shape[2:end]) != self.shape:
            step = ", ".join(["B", *map(str, self.shape), *["..."] * self.axes])
            raise misshapen("x", x, f"({step}), or with one axis more for a sequence")
        state = self._before(x, self.sizes(tuple(steps.shape[1:])))
        y, self.held = self.run(_cast(steps, compute_dtype(self.dtype)), state)
        y = _cast(y, self.dtype)
        return y.transpose(0, 1) if turned else y if sequence else y.squeeze(0)

    def _before(self, x: Tensor, sizes: list[Size]) -> list[Tensor]:
        """The state that was given, or else zeros, of these sizes for this input."""
        dtype = compute_dtype(self.dtype)
        if self.held is None:
            return [x.new_zeros(size, dtype=dtype) for size in sizes]
        for name, part, size in zip(self.names, self.held, sizes, strict=True):
            if tuple(check_real(name, part).shape) != size:
                raise misshapen(name, part, size, f" for an input {tuple(x.shape)}")
            if part.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, but is {part.dtype}")
            check_device(name, part, x.device, owner="input")
        return self.held

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            why = f"a program has no {name}: of its modules a net may use forward and scan alone"
            raise AttributeError(why) from None

    def scan(self, x: Tensor) -> Tensor:
        """The same, as nets may call it."""
        out: Tensor = self(x)
        return out

    def sizes(self, size: Size) -> list[Size]:
        """Those of the state, for inputs ``[B, *shape, ...]`` of this size."""
        raise NotImplementedError

    def run(self, x: Tensor, state: Tensors) -> tuple[Tensor, list[Tensor]]:
        """The outputs of ``x [T, B, ...]``, and the state after it."""
        raise NotImplementedError


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Asked first, because a graph keeps conversions that change nothing.
    return x if x.dtype == dtype else x.to(dtype)


def _part(path: str, module: Stateful) -> _Part:
    """The part of a module at this place."""
    for kind, make in _KINDS.items():
        # Not of one that has a forward of its own, which would not be called.
        if isinstance(module, kind) and type(module).forward is kind.forward:
            module.check_at_home()
            with torch.no_grad():
                part = make(module)
            part.names = tuple([f"{path}.{name}" if path else name for name in part.names])
            return part
    what = f"net.{path}" if path else "net"
    raise TypeError(
        f"{what} is a {type(module).__name__}, of which no program can be made: use synapses, "
        "DelayedLinear, DelayedConv1d, DelayedConv2d and Delay with the forward that they have"
    )


class _Constants(nn.Module):
    """The constants of synapses, for inputs of which the group is followed by so many axes."""

    def __init__(self, dynamics: Dynamics, shape: Size, axes: int) -> None:
        super().__init__()
        self.states, self.coupled = dynamics.states, dynamics.coupling is not None
        self.count = len(dynamics.constants)
        for i, constant in enumerate(dynamics.constants):
            size = (*shape, *[1] * axes) if constant.ndim else ()
            self.register_buffer(str(i), constant.detach().reshape(size).clone())

    def forward(self, x: Tensor, before: Tensors) -> tuple[list[Tensor], Tensor]:
        """The states ``[T, B, ...]`` after each step, from those before, and the current."""
        constants = [getattr(self, str(i)) for i in range(self.count)]
        dynamics = Dynamics.of(constants, self.coupled)
        arriving = dynamics.gain * x
        states: list[Tensor] = []
        for i, initial in enumerate(before):
            decay = dynamics.decay(i)
            if i >= dynamics.inputs:
                assert dynamics.coupling is not None
                arriving = decay * dynamics.coupling * _shifted(states[0], before[0])
            states.append(_filtered(arriving, decay, initial))
        return states, dynamics.current(states)


def _shifted(rows: Tensor, first: Tensor) -> Tensor:
    """What was before each row."""
    first = first.unsqueeze(0)
    return first if len(rows) == 1 else torch.cat((first, rows[:-1]))


def _filtered(x: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """``y[t] = x[t] + decay * y[t - 1]``: each pass doubles the steps that are summed."""
    first = x[:1] + decay * initial
    y, reach = first if len(x) == 1 else torch.cat((first, x[1:])), 1
    while reach < len(x):
        y = torch.cat((y[:reach], y[reach:] + decay * y[:-reach]))
        decay, reach = decay * decay, 2 * reach
    return y


class _Taps(nn.Module):
    """Weighted sums, each over J observations of rows ``[B, C, K - 1 + T, ...]``.

    Args:
        inputs: ``[O, J]``: which input each observation is of.
        back: ``[O, J]``: how many steps back it is.
        weights: the same, for each of the rows that are summed.
        slots: K.
        axes: how many follow time.
    """

    index: Tensor
    weights: Tensor

    def __init__(
        self, inputs: Tensor, back: Tensor, weights: Tensors, slots: int, axes: int
    ) -> None:
        super().__init__()
        self.slots = slots
        self.register_buffer("index", (inputs * slots + slots - 1 - back).to(torch.int32))
        self.register_buffer(
            "weights", torch.stack([*weights]).view(-1, *back.shape, *[1] * (1 + axes))
        )
        self.copies = self.index.shape[1] == 1 and bool((self.weights == 1.0).all())

    def forward(self, rows: Tensors, steps: int) -> Tensor:
        """``[B, O, T, ...]``."""
        index = self.index.unsqueeze(-1)
        if steps > 1:
            later = torch.arange(steps, dtype=index.dtype, device=index.device)
            index = index + index // self.slots * (steps - 1) + later
        parts = []
        for row, weight in zip(rows, self.weights.unbind(0), strict=True):
            seen = row.flatten(1, 2).index_select(1, index.flatten()).unflatten(1, index.shape)
            parts.append(seen.squeeze(2) if self.copies else (seen * weight).sum(2))
        return sum(parts[1:], parts[0])

    def kernels(self, inputs: int) -> list[Tensor]:
        """The same sums as kernels ``[O, C, K]`` of convolutions over time."""
        blank = self.weights.new_zeros(len(self.index), inputs * self.slots)
        place = self.index.to(torch.int64)
        made = [blank.scatter_add(1, place, w.squeeze(-1)) for w in self.weights.unbind(0)]
        return [kernel.unflatten(1, (inputs, self.slots)) for kernel in made]


def _taps_of_inputs(taps: ops.Taps, slots: int, axes: int) -> _Taps:
    """Each input as it was its delay ago, of taps ``[1, I]``."""
    back = taps.back.t()
    inputs = torch.arange(len(back), device=back.device).unsqueeze(1)
    return _Taps(inputs, back, [weight.t() for weight in taps.weights], slots, axes)


def _taps_of_outputs(taps: ops.Taps, slots: int) -> _Taps:
    """The sums of all outputs; where these read different numbers of inputs, zeros fill up."""
    links = taps.links
    if links is None:
        inputs = torch.arange(taps.back.shape[1], device=taps.back.device).expand_as(taps.back)
        return _Taps(inputs, taps.back, taps.weights, slots, 0)
    number = torch.arange(len(links.outputs), device=taps.back.device)
    number -= links.starts[links.outputs]
    most = max(int(links.starts.diff().max()), 1)

    def table(values: Tensor) -> Tensor:
        blank = values.new_zeros(links.size[0], most)
        return blank.index_put((links.outputs, number), values)

    return _Taps(table(links.inputs), table(taps.back), [*map(table, taps.weights)], slots, 0)


def _appended(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[B, C, K - 1 + T, ...]`` that end with ``x [T, B, C, ...]``; the last K."""
    rows = torch.cat((past[:, :, 1:], x.movedim(0, 2)), 2)
    return rows, rows if len(x) == 1 else rows[:, :, len(x) - 1 :]


class _Synapse(_Part):
    """Synapses: their present states."""

    def __init__(self, synapse: ExponentialCurrent) -> None:
        dtype = synapse.component_records()[0].storage.dtype
        super().__init__(synapse, dtype, synapse.shape, 0)
        self.names = _names(synapse)
        self.constants = _Constants(synapse.coefficients().dynamics, self.shape, 0)

    def sizes(self, size: Size) -> list[Size]:
        return [size] * len(self.names)

    def run(self, x: Tensor, state: Tensors) -> tuple[Tensor, list[Tensor]]:
        states, current = self.constants(x, state)
        return current, [rows[-1] for rows in states]


def _names(synapse: ExponentialCurrent) -> tuple[str, ...]:
    return tuple([name.removesuffix("_") for name, _ in synapse._components])


class _Layer(_Part):
    """A delayed layer: rows of what its connections read, and the present of other states.

    Where all delays are whole steps, connections read the current alone.
    """

    kernels: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: Any) -> None:
        synapse, size = layer.synapse, layer.weight.shape[2:]
        super().__init__(layer, layer.weight.dtype, synapse.shape, len(size))
        self.slots = slots = synapse.spike_.recordsz
        # Of a convolution over no axis in a dense layer; the size of the input does not count.
        self.windows = layer._windows(size) if size else ops.Windows((), (), (), (), (), 1)
        coefficients = synapse.coefficients()
        dynamics = coefficients.dynamics
        self.constants = _Constants(dynamics, self.shape, self.axes)
        self.by_input = layer.delays == "input"
        if self.by_input:
            taps = layer._taps(torch.ones_like(layer.delay).unsqueeze(0), coefficients)
        else:
            taps = layer.taps(coefficients)
        self.names, self.kept = _names(synapse), [True] * dynamics.states
        of_current = taps.weights[-1] * dynamics.mix[-1]
        pairs = zip(taps.weights, dynamics.mix, strict=True)
        if all(torch.equal(weight, mix * of_current) for weight, mix in pairs):
            taps = taps._replace(weights=(of_current,))
            self.names = tuple(dict.fromkeys((*self.names, "current")))
            self.kept = [name == "current" for name in self.names]
        kernels, self.taps = None, None
        if self.by_input:
            self.taps = _taps_of_inputs(taps, slots, self.axes)
            kernels = layer._weights().view(1, *layer.weight.shape[:2], 1, *size)
        elif self.axes:
            made = [kernel_over_time(w, taps.back, slots, self.windows) for w in taps.weights]
            kernels = torch.stack(made)
        else:
            self.taps = _taps_of_outputs(taps, slots)
        bias = layer.bias
        if bias is not None:
            bias = bias.view(-1, *[1] * (1 + self.axes))
        for name, value in (("kernels", kernels), ("bias", bias)):
            kept = None if value is None else value.detach().to(dynamics.gain.dtype, copy=True)
            self.register_buffer(name, kept)

    def sizes(self, size: Size) -> list[Size]:
        rows = *size[:2], self.slots, *size[2:]
        return [rows if kept else size for kept in self.kept]

    def run(self, x: Tensor, state: Tensors) -> tuple[Tensor, list[Tensor]]:
        pairs = zip(state[: self.constants.states], self.kept, strict=False)
        newest = [part[:, :, -1] if kept else part for part, kept in pairs]
        states, current = self.constants(x, newest)
        rows, after = [], []
        for past, new, kept in zip(state, (*states, current), self.kept, strict=False):
            if kept:
                row, new = _appended(past, new)
                rows.append(row)
            after.append(new if kept else new[-1])
        y = self._projected(rows, len(x))
        if self.bias is not None:
            y = y + self.bias
        return y.movedim(2, 0), after

    def _projected(self, rows: Tensors, steps: int) -> Tensor:
        """``[B, O, T, ...]``."""
        kernels: Tensors = () if self.kernels is None else self.kernels.unbind(0)
        if self.taps is not None:
            if self.by_input:
                rows = [self.taps(rows, steps)]
            elif steps == 1:
                return self.taps(rows, 1)
            else:
                kernels = self.taps.kernels(self.shape[0])
        pairs = zip(rows, kernels, strict=True)
        parts = [convolve(row, kernel, self.windows) for row, kernel in pairs]
        return sum(parts[1:], parts[0])


class _Signal(_Part):
    """A delay of a signal: what it makes of an impulse says how much each row counts."""

    names = ("signal",)

    def __init__(self, layer: Delay) -> None:
        storage = layer.signal_.storage
        super().__init__(layer, storage.dtype, layer.shape, 0)
        self.slots = slots = len(storage)
        twin = copy.deepcopy(layer)
        twin.batch_first, twin.batchsz = False, 1
        impulse = storage.new_zeros(slots, 1, *layer.shape)
        impulse[0] = 1.0
        response = twin.scan(impulse).flatten(1).t().to(compute_dtype(storage.dtype))
        counts = response != 0.0
        most = max(int(counts.sum(1).max()), 1)
        back = counts.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        channels = torch.arange(len(back), device=back.device).unsqueeze(1).expand_as(back)
        self.taps = _Taps(channels, back, [response.gather(1, back)], slots, 0)

    def sizes(self, size: Size) -> list[Size]:
        return [(size[0], math.prod(self.shape), self.slots)]

    def run(self, x: Tensor, state: Tensors) -> tuple[Tensor, list[Tensor]]:
        rows, after = _appended(state[0], x.flatten(2))
        return self.taps([rows], len(x)).movedim(2, 0).reshape(x.shape), [after]


_KINDS: dict[type[Stateful], Callable[[Any], _Part]] = {
    ExponentialCurrent: _Synapse,
    DelayedLinear: _Layer,
    DelayedConv1d: _Layer,
    DelayedConv2d: _Layer,
    Delay: _Signal,
}


# -- files ------------------------------------------------------------------------------------


def to_program(
    net: nn.Module, *inputs: Tensor, batch_axis: int | None = 0
) -> torch.export.ExportedProgram:
    """The net with :class:`ExplicitState` as ``torch.export`` has it, of PyTorch's operators only.

    ``torch.export.save`` writes it, and what ``torch.export.load(path).module()`` gives runs where
    tritonsyn is not installed. AOTInductor takes it, too.

    Args:
        net: the net, or its :class:`ExplicitState`.
        inputs: examples, of a step or of a sequence of so many steps as the program will take.
        batch_axis: the batch's axis in all inputs and outputs, which may then be of any size; with
            ``batch_first`` and in steps it is 0, else 1 in sequences. None: the examples' size.

    Returns:
        A program that takes and returns what :class:`ExplicitState` does.

    Raises:
        TypeError, ValueError: no program can be made of the net, or an input does not fit.
    """
    program = net if isinstance(net, ExplicitState) else ExplicitState(net)
    shapes = None
    if batch_axis is not None:
        # torch.export takes a batch of one for a constant.
        inputs = tuple([x.repeat_interleave(2, batch_axis) for x in inputs])
        batch = torch.export.Dim("batch")
        axes = [batch_axis] * len(inputs) + [0] * len(program.state_names)
        shapes = (tuple([{axis: batch} for axis in axes]),)
    tensors = (*inputs, *program.initial_state(*inputs))
    with torch.no_grad():
        return torch.export.export(program, tensors, dynamic_shapes=shapes)


def to_onnx(net: nn.Module, path: str | Path, *inputs: Tensor, batch_axis: int | None = 0) -> None:
    """Writes the net with :class:`ExplicitState` as an ONNX file.

    The inputs have the names of the arguments of ``net.forward``, such as ``x``, and the state its
    own, such as ``0.current``. The outputs are ``y`` (``y.0``, ``y.1`` if there are more), and the
    next state, ``next.0.current``. The file appears when it is whole.

    Args:
        net: the net, or its :class:`ExplicitState`.
        path: the file to write; one that exists is replaced.
        inputs: examples, as for :func:`to_program`.
        batch_axis: the batch's axis in all inputs and outputs, as for :func:`to_program`.

    Raises:
        TypeError, ValueError: no program can be made of the net, or an input does not fit.
        ModuleNotFoundError: onnx and onnxscript are not installed (``pip install
            "tritonsyn[onnx]"``).
    """
    program = net if isinstance(net, ExplicitState) else ExplicitState(net)
    exported = to_program(program, *inputs, batch_axis=batch_axis)
    given, state = [*inspect.signature(program.net.forward).parameters], program.state_names
    if len(given) < len(inputs):
        given = _numbered("x", len(inputs))
    made = _numbered("y", len(exported.graph_signature.user_outputs) - len(state))
    how: dict[str, Any] = {"input_names": [*given[: len(inputs)], *state], "verbose": False}
    how["output_names"] = [*made, *(f"next.{name}" for name in state)]
    if batch_axis is not None:  # which names an axis, and all others that are as long
        how["dynamic_shapes"] = ({batch_axis: "batch"}, *[{}] * (len(how["input_names"]) - 1))
    onnx = torch.onnx.export(exported, dynamo=True, **how)
    assert onnx is not None
    for node in onnx.model.graph:
        node.metadata_props.clear()  # what traced it, with the paths of this machine
    with written_whole(Path(path)) as beside:
        onnx.save(beside)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
