"""Modules on many processes: tensor parallel, with spikes that travel as bits.

``torch.distributed`` starts the processes; a :class:`torch.distributed.device_mesh.DeviceMesh` says
which of them work together. :class:`DelayedColwiseParallel` shards a layer over its outputs, and
:func:`gather_spikes` gives every process the spikes of all. :class:`LocalParallel` shards modules
over their batch, and synapses over themselves. ``docs/distributed.md`` has examples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.utils.parametrize import is_parametrized

from . import checks
from .checks import Constant
from .modules.delay import Delay
from .modules.linear import DelayedLinear
from .modules.projection import DelayedProjection
from .modules.sequences import TakesSequences
from .modules.state import Stateful, check_not_compiled, ordinary_tensors, saved_by_torch
from .modules.synapse import Coefficients, ExponentialCurrent
from .ops.common import first_order
from .ops.scan import pack_rows
from .ops.shards import as_distributed, summed
from .values import PackedSpikes, readable, unpack_bits

__all__ = ["DelayedColwiseParallel", "LocalParallel", "gather_spikes", "without_records"]

# The older names are deprecated from PyTorch 2.13 on, which has the newer ones.
_all_gather: Callable[..., Any] = getattr(
    distributed, "all_gather_single", distributed.all_gather_into_tensor
)
_reduce_scatter: Callable[..., Any] = getattr(
    distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor
)


# -- spikes that travel ---------------------------------------------------------------------------


def gather_spikes(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The spikes of all processes, each of which has an equal part of the neurons.

    One bit for each spike goes over the wire, whatever the dtype is. The gradient of ``x`` is this
    process' part of that of the result, so nothing travels backward: what is computed of the result
    has to be the same on all processes, or is done by a :class:`DelayedColwiseParallel` layer.

    Args:
        x: the spikes of this process' neurons ``[..., n]``, as 0 and 1, of any real dtype.
        mesh: the P processes, on one axis.

    Returns:
        ``[..., P n]`` in the dtype of ``x``, in the order of the processes.

    Raises:
        TypeError, ValueError: ``x`` is not such a tensor, or holds other values. On a GPU these are
            found later, by an assertion on the device, so that nothing has to wait.
    """
    return _Gather.apply(_checked_spikes(x), _only_axis(mesh), False)


def _only_axis(mesh: DeviceMesh) -> DeviceMesh:
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a DeviceMesh, but is {checks.shown(mesh)}")
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one axis, but has {mesh.ndim}: take mesh[name] of one")
    return mesh


def _checked_spikes(x: Any) -> Tensor:
    """``x`` once it is sure, or on a GPU going to be, that a bit is enough for each value."""
    x = checks.check_real("x", x)
    if x.ndim == 0:
        raise checks.misshapen("x", x, "(..., n)")
    if x.dtype != torch.bool:
        all_bits = (x == (x != 0)).all()
        if x.device.type == "cuda":
            torch._assert_async(all_bits, "spikes that travel as bits must be 0 or 1")
        elif readable(x) and not all_bits:
            raise ValueError("x must hold spikes, 0 or 1, which travel as bits, but has others")
    return x


class _Gather(torch.autograd.Function):
    """``[..., n]`` of each process as ``[..., P n]``.

    Backward is a part of the gradient, or its sum over processes where each has some of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh, partial: bool) -> Tensor:
        ctx.mesh, ctx.partial = mesh, partial
        words = pack_rows(x.detach().reshape(1, -1), None)
        all_words = words.new_empty(mesh.size(), words.shape[1])
        _all_gather(all_words, words, group=mesh.get_group())
        spikes = unpack_bits(all_words, x.numel()).view(mesh.size(), *x.shape)
        return spikes.movedim(0, -2).flatten(-2).to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        parts = gradient.unflatten(-1, (ctx.mesh.size(), -1)).movedim(-2, 0)
        if not ctx.partial:
            return parts[ctx.mesh.get_local_rank()], None, None
        own = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        _reduce_scatter(own.view(-1), parts.contiguous().view(-1), group=ctx.mesh.get_group())
        return own, None, None


# -- what sharded modules share -------------------------------------------------------------------


class _Style(ParallelStyle):
    def _distribute(self, module: nn.Module, mesh: DeviceMesh) -> None:
        """Gives all processes what one has: ``DTensor`` where they have parts, else copies."""
        with ordinary_tensors():
            for part in module.modules():
                for name, tensor in saved_by_torch(part).items():
                    axis, own = _axis_of_parts(part, name, tensor), tensor.detach()
                    layout = Replicate() if axis is None else Shard(axis)
                    made = distribute_tensor(own, mesh, [layout], src_data_rank=self.src_data_rank)
                    if axis is None:
                        own.copy_(made.to_local())
                    elif name in part._buffers:
                        part._buffers[name] = made
                    else:
                        part._parameters[name] = nn.Parameter(made, tensor.requires_grad)


class _Sharded(TakesSequences):
    """A module that several processes run together."""

    _mesh: ClassVar[DeviceMesh]
    _prefix: ClassVar[str]
    """Of the names of such classes."""

    def _axis_of_parts(self, name: str, sizes: Sequence[int]) -> int | None:
        """Which axis of a saved tensor each process has a part of; None: it is whole on all."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"a {type(self).__name__} works together with other processes and cannot be pickled; "
            "save its state_dict() by torch.distributed.checkpoint"
        )


def _become(module: nn.Module, kind: type[_Sharded], **own: Any) -> None:
    """Makes the module one of this kind, with these attributes of its class."""
    name = f"{kind._prefix}{type(module).__name__}"
    module.__class__ = type(name, (kind, type(module)), own)


def _axis_of_parts(module: nn.Module, name: str, tensor: Tensor) -> int | None:
    """The same of any module: what is not sharded is whole."""
    return module._axis_of_parts(name, tensor.shape) if isinstance(module, _Sharded) else None


def _part_of(sizes: tuple[int, ...], axis: int | None, parts: int) -> tuple[int, ...]:
    """The sizes of one of so many parts."""
    return tuple([size // parts if i == axis else size for i, size in enumerate(sizes)])


def _check_ordinary(module: Any) -> None:
    """Raises where a module cannot be sharded, or is so already."""
    module.check_at_home()
    for part in module.modules():
        if is_parametrized(part):
            raise ValueError(f"a parametrized {type(part).__name__} cannot be sharded")
        if isinstance(part, _Local):
            raise ValueError(f"{type(part).__name__} is distributed already, by LocalParallel")
        for name, tensor in part.named_parameters(recurse=False):
            if isinstance(tensor, DTensor):
                raise ValueError(f"{name} is distributed already, as {tensor.placements}")
    if not isinstance(module, ExponentialCurrent):  # which has those that are learned
        _check_present(module)


def _check_present(module: Any) -> None:
    """Raises where the parameters are not those that the module was made with."""
    names = getattr(module, "_shapes", module._delay_names)
    if module._parameters.keys() != {*names}:
        raise ValueError(
            f"the parameters of a sharded module must be {', '.join(names)}, but are "
            f"{', '.join(module._parameters)}: parametrizations and pruning are not sharded, make "
            "them permanent first"
        )


@contextmanager
def _at_hand(module: nn.Module, mesh: DeviceMesh) -> Iterator[None]:
    """Until the block ends, parameters are what this process computes with."""
    homes: list[tuple[nn.Module, dict[str, Any]]] = []
    for part in module.modules():
        homes += [(part, part._parameters), (part, part._buffers)]
    kept = [(*home, name, tensor) for home in homes for name, tensor in home[1].items()]
    kept = [each for each in kept if isinstance(each[3], nn.Parameter | DTensor)]
    try:
        for part, home, name, tensor in kept:
            home[name] = _own(part, name, tensor, mesh)
        yield
    finally:
        for _, home, name, tensor in kept:
            home[name] = tensor


def _own(module: nn.Module, name: str, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """This process' part of a ``DTensor``; of any other all, with a gradient that is summed.

    Raises:
        ValueError: it is in parts, or whole, where the module has the other.
    """
    axis = _axis_of_parts(module, name, tensor)
    if axis is None and not isinstance(tensor, DTensor):
        return summed(tensor, mesh.get_group())
    if axis is not None and isinstance(tensor, DTensor):
        if tensor.device_mesh == mesh and tensor.placements == (Shard(axis),):
            with torch.set_grad_enabled(torch.is_grad_enabled() and tensor.requires_grad):
                return tensor.to_local()
    given = wanted = "an ordinary tensor"
    if isinstance(tensor, DTensor):
        given = f"a DTensor {tensor.placements} on {tensor.device_mesh}"
    if axis is not None:
        wanted = f"a DTensor {(Shard(axis),)} on {mesh}"
    raise ValueError(
        f"{name} of a {type(module).__name__} must be {wanted}, but is {given}: set it so, or "
        "before the module is sharded"
    )


# -- layers that are sharded over their outputs ---------------------------------------------------


class DelayedColwiseParallel(_Style):
    """Shards a :class:`tritonsyn.DelayedLinear` over its outputs, for ``parallelize_module``.

    As :class:`torch.distributed.tensor.parallel.ColwiseParallel` does with a dense layer: of P
    processes each keeps the weights, delays, biases and connections of its ``out / P`` outputs, as
    parts of ``DTensor`` parameters, and computes these outputs. What belongs to the inputs is kept
    by all: the records of the synapses, their constants, delays of inputs. Parameters among these
    stay ordinary ones, with the gradient summed over the processes, so that they stay equal.

    The layer then returns this process' outputs ``[..., out / P]``, or given a ``DTensor`` one that
    is ``Shard`` over its last axis.

    Args:
        input_layouts: ``Replicate()``, the default: the input ``[..., in]`` is the same on all
            processes; its gradient is summed over them. ``Shard(-1)``: it is ``[..., in / P]``, the
            spikes of this process' neurons, which travel as bits (:func:`gather_spikes`); the sums
            of their gradients come back to the process that they belong to. A ``DTensor`` says
            itself how it is laid out.

    Raises:
        TypeError, ValueError: the module is not a ``DelayedLinear``, its outputs cannot be divided
            by the processes, a parameter is parametrized, pruned or distributed already, or mesh or
            layout is another one.

    Example:
        >>> recurrent = DelayedColwiseParallel(input_layouts=Shard(-1))
        >>> plan = {"inputs": DelayedColwiseParallel(), "recurrent": recurrent}
        >>> net = parallelize_module(net, mesh, plan)  # doctest: +SKIP
    """

    def __init__(self, *, input_layouts: Placement | None = None) -> None:
        super().__init__()
        layout = Replicate() if input_layouts is None else input_layouts
        if not layout.is_replicate() and layout != Shard(-1):
            raise ValueError(f"input_layouts must be Replicate() or Shard(-1), but is {layout}")
        self.input_layouts = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        mesh = _only_axis(device_mesh)
        layer = _checked_layer(module, mesh)
        _become(layer, _Parallel, _mesh=mesh, _layout=self.input_layouts)
        self._distribute(layer, mesh)
        layer._shapes = {
            name: _part_of(size, layer._axis_of_parts(name, size), mesh.size())
            for name, size in layer._shapes.items()
        }
        layer._links()
        return layer


def _checked_layer(module: nn.Module, mesh: DeviceMesh) -> Any:
    """The module, if it is a layer that can be sharded over its outputs."""
    if not isinstance(module, DelayedLinear):
        raise TypeError(
            f"DelayedColwiseParallel shards a DelayedLinear, but is given a {type(module).__name__}"
        )
    _check_ordinary(module)
    if module.out_features % mesh.size():
        raise ValueError(
            f"out_features={module.out_features} cannot be divided by {mesh.size()} processes"
        )
    return module


def _layout_of(x: DTensor, mesh: DeviceMesh) -> Placement:
    """How the input of a sharded layer is laid out over its processes."""
    if x.device_mesh != mesh:
        raise ValueError(f"x is on {x.device_mesh}, but the layer is on {mesh}")
    (layout,) = x.placements
    if layout.is_shard(x.ndim - 1):
        return Shard(-1)
    if not layout.is_replicate():
        raise ValueError(
            f"x is {layout}, but must be Replicate() or Shard over its last axis, the inputs"
        )
    return layout


class _Parallel(_Sharded, DelayedLinear):
    """A layer of which this process computes a part of the outputs."""

    _prefix = "Parallel"
    _layout: ClassVar[Placement]

    def _axis_of_parts(self, name: str, sizes: Sequence[int]) -> int | None:
        return None if name == "delay" and self.delays == "input" else 0

    def forward(self, x: Any, *, _run: Callable[[Any], Any] | None = None) -> Any:
        check_not_compiled("torch.compile does not take layers that are sharded over their outputs")
        rows = self._all_inputs(x)
        with _at_hand(self, self._mesh):
            y = super().forward(rows, _run=_run)
        if not isinstance(x, DTensor):
            return y
        return DTensor.from_local(y, self._mesh, [Shard(y.ndim - 1)], run_check=False)

    def _all_inputs(self, x: Any) -> Any:
        """The inputs of all processes, with a gradient that is summed over these."""
        layout, own = self._layout, x
        if isinstance(x, DTensor):
            layout, own = _layout_of(x, self._mesh), x.to_local()
        if layout.is_replicate():
            return summed(own, self._mesh.get_group()) if isinstance(own, Tensor) else own
        if isinstance(own, PackedSpikes):
            raise TypeError("x must be a tensor, but is PackedSpikes; it travels as bits anyway")
        own, most = _checked_spikes(own), self.in_features // self._mesh.size()
        if own.shape[-1] * self._mesh.size() != self.in_features:
            raise ValueError(
                f"x has {own.shape[-1]} inputs, but must have {most}: each of {self._mesh.size()} "
                f"processes gives its part of {self.in_features}"
            )
        return _Gather.apply(own, self._mesh, True)

    def _check_parameters(self) -> None:
        _check_present(self)
        super()._check_parameters()

    @property
    def delay_steps(self) -> Tensor:
        with _at_hand(self, self._mesh):
            return super().delay_steps

    delay_steps.__doc__ = DelayedLinear.delay_steps.__doc__

    def _links(self) -> Any:
        if not isinstance(self.mask, DTensor):
            return super()._links()
        with _at_hand(self, self._mesh):
            return super()._links()


# -- modules that each process runs on its part of the input --------------------------------------


class LocalParallel(_Style):
    """Shards a module over its batch, or synapses over themselves, for ``parallelize_module``.

    No sample and no synapse depends on another one, so each process runs the module on its part of
    the input, and keeps the records of that part.

    Parameters, masks and constants that are tensors are those of the first process. The
    module brings a ``DTensor`` into this layout, and returns one of this layout; nothing else
    travels forward. It takes an ordinary tensor for this process' part, and returns this part of
    the output. Other arguments, such as ``lengths``, and other methods, such as ``current_at``, are
    of this part, too.

    Args:
        layout: how the input ``[B, *shape]`` of a step is laid out; in sequences it has time
            besides. ``Shard(0)``, the default: over the batch. Parameters stay ordinary ones, with
            the gradient summed over the processes, so that they stay equal. ``Shard(i)``: synapses,
            and :class:`tritonsyn.Delay`, over an axis of their ``shape``. Constants and delays that
            have this axis become ``DTensor``. The module's ``shape`` is then that of a part, and
            its state begins cleared.

    Raises:
        TypeError, ValueError: the module is not a synapse, a ``Delay`` or a delayed layer, it has
            no such axis, or one that cannot be divided by the processes, or a parameter is
            parametrized, pruned or distributed already.

    Example:
        >>> plan = {"synapse": LocalParallel(Shard(-1)), "delays": LocalParallel()}
        >>> net = parallelize_module(net, mesh, plan)  # doctest: +SKIP
    """

    def __init__(self, layout: Placement | None = None) -> None:
        super().__init__()
        given = Shard(0) if layout is None else layout
        if not isinstance(given, Shard):
            raise ValueError(f"layout must be a Shard, but is {checks.shown(layout)}")
        self.layout = given

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        mesh = _only_axis(device_mesh)
        kind = _local_kind(module)
        _check_ordinary(module)
        axis = _checked_axis(module, self.layout, mesh)
        _become(module, kind, _mesh=mesh, _axis=axis)
        if isinstance(module, DelayedProjection):  # of which reads may be asked for directly
            _become(module.synapse, _LocalSynapse, _mesh=mesh, _axis=axis)
        self._distribute(module, mesh)
        if axis:
            _take_part(module)
        return module


def _take_part(module: Any) -> None:
    """Leaves of a group the part of this process, with records of it."""
    axis_of, parts = module._axis_of_parts, module._mesh.size()
    if isinstance(module, Delay):
        size = module._delay_shape
        module._delay_shape = _part_of(size, axis_of("delay", size), parts)
    module._sizes = _part_of(module.shape, module._axis - 1, parts)
    module._rebuild()


def _local_kind(module: nn.Module) -> type["_Local"]:
    """What a module becomes that each process runs on its part of the input."""
    for kind, local in _LOCAL.items():
        if isinstance(module, kind):
            return local
    raise TypeError(
        "LocalParallel shards synapses, Delay and delayed layers, but is given a "
        f"{type(module).__name__}"
    )


def _checked_axis(module: Any, layout: Shard, mesh: DeviceMesh) -> int:
    """The axis of a step's input ``[B, ...]`` that is sharded."""
    axes = module.step_axes
    axis = layout.dim + axes if layout.dim < 0 else layout.dim
    if isinstance(module, DelayedProjection):
        if axis != 0:
            raise ValueError(
                f"layout is {layout}, but {type(module).__name__} may only be sharded over its "
                "batch, Shard(0); DelayedColwiseParallel shards a DelayedLinear over its outputs"
            )
    elif not 0 <= axis < axes:
        raise ValueError(f"layout is {layout}, but a step's input has {axes} axes")
    elif axis and module.shape[axis - 1] % mesh.size():
        raise ValueError(
            f"shape={module.shape} cannot be divided over {layout} by {mesh.size()} processes"
        )
    return axis


class _Local(_Sharded):
    """A module that each process runs on its part of the input."""

    _prefix = "Local"
    _axis: ClassVar[int]
    """Which of a step's input is sharded."""

    def _axis_of_parts(self, name: str, sizes: Sequence[int]) -> int | None:
        module: Any = self
        axis = len(sizes) - module.step_axes + self._axis
        return axis if self._axis and axis >= 0 and sizes[axis] > 1 else None

    def forward(self, x: Any, **how: Any) -> Any:
        check_not_compiled("torch.compile does not take modules that LocalParallel has sharded")
        if not isinstance(x, DTensor):
            return super().forward(x, **how)
        axis = self._axis_of(x)
        y = super().forward(x.redistribute(self._mesh, [Shard(axis)]).to_local(), **how)

        def whole(own: Tensor) -> Tensor:
            sizes = *own.shape[:axis], x.shape[axis], *own.shape[axis + 1 :]
            return as_distributed(own, self._mesh, [Shard(axis)], sizes)

        return tuple(map(whole, y)) if isinstance(y, tuple) else y if y is None else whole(y)

    def _axis_of(self, x: DTensor) -> int:
        """The axis of an input, of a step or of a sequence, that is sharded."""
        module: Any = self
        axes = module.step_axes
        if x.device_mesh != self._mesh:
            raise ValueError(f"x is on {x.device_mesh}, but the module is on {self._mesh}")
        if x.ndim not in (axes, axes + 1):
            raise checks.misshapen("x", x, f"{axes} axes in a step, and {axes + 1} in a sequence")
        after_time = x.ndim > axes and (self._axis > 0 or not self._batch_first)
        axis = self._axis + after_time
        self._check_parts(x, x.shape[axis])
        return axis

    def _check_parts(self, x: DTensor, size: int) -> None:
        """Raises on all processes where one would: it alone would leave the others waiting."""
        module: Any = self
        parts = self._mesh.size()
        if self._axis:
            wanted = module.shape[self._axis - 1] * parts
            if size != wanted:
                raise checks.misshapen("x", x, f"{wanted} in the axis that is sharded")
        elif (rows := -(-size // parts)) * (parts - 1) >= size:
            raise ValueError(
                f"x has a batch of {size}, which in parts of {rows} is not enough for {parts} "
                "processes"
            )


class _LocalSynapse(_Local, ExponentialCurrent):
    def coefficients(self) -> Coefficients:
        with _at_hand(self, self._mesh):
            return super().coefficients()

    def _checked_constant(self, name: str, value: Any) -> Constant:
        with torch.no_grad(), _at_hand(self, self._mesh):
            own = _own(self, name, value, self._mesh) if isinstance(value, Tensor) else value
            checked = super()._checked_constant(name, own)
        return checked if own is value else value


class _LocalDelay(_Local, Delay):
    def _present_delay(self) -> Tensor:
        _check_present(self)
        with _at_hand(self, self._mesh):
            return super()._present_delay()


class _LocalLayer(_Local, DelayedProjection):
    def forward(self, x: Any, **how: Any) -> Any:
        with _at_hand(self, self._mesh):
            return super().forward(x, **how)

    def _check_parameters(self) -> None:
        _check_present(self)
        super()._check_parameters()


_LOCAL: dict[type[Stateful], type[_Local]] = {
    ExponentialCurrent: _LocalSynapse,
    Delay: _LocalDelay,
    DelayedProjection: _LocalLayer,
}


# -- checkpoints ----------------------------------------------------------------------------------


def without_records(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the past: parameters, constants, and all that is not of tritonsyn.

    Records have the batch of one process, so that a checkpoint with them is loaded by as many
    processes as saved it. Without them any number can, by ``StateDictOptions(strict=False)``; then
    call ``clear()``.

    Args:
        state_dict: what ``module.state_dict()`` or ``get_model_state_dict(module)`` returns.

    Returns:
        A new dictionary of the other entries, with the same tensors.
    """
    # A record, and nothing else, has all of these.
    records = {
        key.removesuffix("times")
        for key in state_dict
        if key.endswith("_.times") and f"{key.removesuffix('times')}pointer" in state_dict
    }
    inner = "synapse.spike_."
    layers = {each.removesuffix(inner) for each in records if each.endswith(inner)}
    # The positions that a convolution's records are of; other modules may call something size, too.
    weights = ("weight", "parametrizations.weight.")
    sizes = {
        f"{layer}size"
        for layer in layers
        if any(key.startswith(layer + weight) for key in state_dict for weight in weights)
    }
    return {
        key: value
        for key, value in state_dict.items()
        if key[: key.rfind(".") + 1] not in records and key not in sizes
    }
