"""What the differentiable operations share: flat views, ownership of gradients, reductions."""

import importlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backend as backends
from ..backend import resolve
from ..physics import bounded
from ..values import Slot
from .operator import operator, traced_as

_OWNER = "_tritonsyn_owner"


def link(ctx: Any, *records: Tensor) -> None:
    """Makes a Function, which returns these records, a link in the chain of operations on them."""
    ctx.mark_dirty(*records)
    ctx.materialize_grads = False
    ctx.record = records[0].shape, records[0].dtype, records[0].device
    ctx.watched = any(record._backward_hooks for record in records)


def own_gradient(
    ctx: Any,
    gradient: Tensor | None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A gradient of the whole record that the backward pass of a link may write to.

    Takes the gradient that the next link handed over, makes zeros if there is none yet, of the
    record's shape and dtype unless others are given, and copies one from elsewhere, such as a
    user's own operation on the record, and one that a call of ``torch.autograd.grad`` will return.
    """
    if gradient is None:
        record_shape, record_dtype, device = ctx.record
        return torch.zeros(shape or record_shape, dtype=dtype or record_dtype, device=device)
    if getattr(gradient, _OWNER, None) is ctx and _uses(gradient) <= _uses_on_arrival():
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)


def _uses(tensor: Any) -> int:
    """How often PyTorch refers to a tensor."""
    return int(tensor._use_count())


@cache
def _uses_on_arrival() -> int:
    """How often PyTorch itself refers to a gradient while a backward pass receives it."""
    found = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            found.append(_uses(gradient))
            return gradient

    with torch.enable_grad():
        leaf = torch.zeros((), requires_grad=True)
        torch.autograd.grad(2 * Probe.apply(leaf), leaf)
    return found[0]


def hand_over(node: Any, gradient: Tensor | None, index: int) -> Tensor | None:
    """Marks the gradient as owned by the operation that made input ``index``, and by no other.

    Another operation, such as a user's addition, may pass the same tensor on to several, and a hook
    on the record may keep it: then it stays unmarked. ``index`` counts the tensors among the inputs
    of ``node``.
    """
    if gradient is not None and not node.watched:
        setattr(gradient, _OWNER, node.next_functions[index][0])
    return gradient


@traced_as(lambda: None)
def refuse_transforms() -> None:
    """Raises ``NotImplementedError`` inside of ``vmap`` and of other transforms of ``torch.func``.

    Their tensors stand for others, which neither kernels nor writes into records see.
    """
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "tritonsyn does not run inside of vmap or other transforms of torch.func: use the "
            "batch axis instead of vmap, and torch.autograd.grad instead of torch.func.grad; "
            "torch.func.functional_call works"
        )


@traced_as(lambda *gradients: None)
def _refuse_batched(*gradients: Tensor | None) -> None:
    """Raises ``NotImplementedError`` for gradients of ``vmap``, which are many in one tensor."""
    kinds = torch._C._functorch
    for gradient in gradients:
        if gradient is not None and (
            kinds.is_batchedtensor(gradient) or kinds.is_legacy_batchedtensor(gradient)
        ):
            raise NotImplementedError(
                "tritonsyn has no batched gradients; call backward or grad for one gradient at a "
                "time, without vmap or is_grads_batched"
            )


def ordinary() -> bool:
    """Whether no transform, forward mode, backward pass or tracing is in progress.

    Plans run then only; what else there is, the general path judges.
    """
    return not (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._current_graph_task_id() != -1
        or torch._C._is_tracing()
    )


def kind_of(x: Tensor) -> Callable[[Any], bool]:
    """Says of another value whether it is such a tensor that a planned launch can take it for
    ``x``: dense and packed, of the same dtype, shape, device and alignment."""
    dtype, shape, device = x.dtype, x.shape, x.device

    def fits(other: Any) -> bool:
        try:
            return (
                other.__class__ is Tensor
                and other.dtype is dtype
                and other.shape == shape
                and other.device == device
                and other.is_contiguous()
                and not other.is_neg()
                and not other.data_ptr() % 16
            )
        except RuntimeError:  # of what has no shape, or no memory
            return False

    return fits


def bare_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``apply`` without what PyTorch adds to it in Python for transforms, which callers exclude."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


class Home(NamedTuple):
    """Where modules keep what a plan reads and changes."""

    places: Sequence[tuple[dict[str, Any], str]]
    """Tensors: the attributes of a module, and the name there."""
    cursors: Sequence[dict[str, Any]]
    """The attributes of records, of which ``_cursor`` is the pointer; none where pointers are on
    the device."""

    def finder(self) -> Callable[[], list[Tensor] | None]:
        """Returns the tensors, or None where a plan made now cannot run.

        That is if anything is in other memory than now, if other launches may be taken, and if not
        all is :func:`ordinary`. The memory is kept, so that it is given to no other tensor, but no
        graph.
        """
        epoch = backends.epoch
        now = [(*place, place[0][place[1]]) for place in self.places]
        known = [
            (home, name, t.untyped_storage(), type(t), t.data_ptr(), t.dtype, t.shape)
            for home, name, t in now
        ]

        def find() -> list[Tensor] | None:
            if epoch != backends.epoch or not ordinary():
                return None
            found = []
            for home, name, _, kind, address, dtype, shape in known:
                t: Any = home.get(name)
                if t.__class__ is not kind or t.data_ptr() != address:
                    return None
                if t.dtype is not dtype or t.shape != shape:
                    return None
                found.append(t)
            return found

        return find

    def moved(self, steps: int, slots: int) -> None:
        """Moves the pointers on, as far as the device does not move them."""
        for cursor in self.cursors:
            cursor["_cursor"] = (cursor["_cursor"] + steps) % slots


def without_owner(tensor: Tensor) -> Tensor:
    """The same memory, for plans; a tensor detached from another keeps that and so its graph.

    Writes to it are not counted.
    """
    return tensor.data


def no_forward_mode() -> NotImplementedError:
    """The error for forward-mode derivatives."""
    return NotImplementedError("tritonsyn has no forward-mode derivatives; use backward")


def chained(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors is to be recorded by autograd.

    Every operation asks before it writes anything. Raises ``NotImplementedError`` for forward-mode
    derivatives, which kernels would drop, and where :func:`refuse_transforms` does.
    """
    refuse_transforms()
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise no_forward_mode()
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a backward pass refuse second derivatives and batched gradients, and skips it where no
    gradient arrives.

    Kernels record no graph: without this a gradient would count as a constant in whatever is
    computed from it, and second derivatives would be wrong in silence.
    """

    @wraps(backward)
    def refusing(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "tritonsyn has no second derivatives; call backward or grad without create_graph"
            )
        if all(gradient is None for gradient in gradients):
            check_not_freed(ctx)
            return (None,) * len(ctx.needs_input_grad)
        _refuse_batched(*gradients)
        return backward(ctx, *gradients)

    return refusing


@traced_as(lambda ctx: ctx.saved_tensors)
def saved(ctx: Any) -> tuple[Tensor | None, ...]:
    """What a Function has saved.

    Raises ``RuntimeError`` with what to do where an earlier backward pass has freed it.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            "this backward pass reaches the graph of an earlier one, which is freed: the state "
            "still holds it. Call clear() before a new sequence, or detach_state() to go on with "
            "the state but without its graph. Inside of `with layer.unrolled(...)` call backward "
            "after the block. To go through one graph twice, pass retain_graph=True to the first "
            "backward"
        ) from error


@traced_as(lambda ctx: None)
def check_not_freed(ctx: Any) -> None:
    """Raises what :func:`saved` does, where nothing that was saved is needed.

    What comes before in the graph is freed too, and might be an operation of PyTorch.
    """
    try:
        saved(ctx)
    except RuntimeError as error:
        if error.__cause__ is not None:
            raise


def keep(ctx: Any, *groups: Sequence[Any]) -> None:
    """Keeps groups of values for the backward pass, which gets them by :func:`kept`.

    Autograd saves the tensors, and so notices later writes to them. A gradient that does not arrive
    stays None.
    """
    values = list(itertools.chain(*groups))
    ctx.save_for_backward(*[value if isinstance(value, Tensor) else None for value in values])
    ctx.others = [None if isinstance(value, Tensor) else value for value in values]
    ctx.sizes = list(map(len, groups))
    ctx.materialize_grads = False  # set_materialize_grads, which Dynamo refuses


def kept(ctx: Any) -> list[list[Any]]:
    """The groups of values that :func:`keep` kept."""
    pairs = zip(saved(ctx), ctx.others, strict=True)
    values = [other if tensor is None else tensor for tensor, other in pairs]
    ends = itertools.accumulate(ctx.sizes)
    return [values[end - size : end] for size, end in zip(ctx.sizes, ends, strict=True)]


def without_graph() -> AbstractContextManager[object]:
    """``torch.no_grad()``, or something cheaper if gradients are disabled already."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the dtype of their operands; cheap where they are so anyway."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def unchained(record: Tensor) -> Tensor:
    """The record without its graph, the same storage, about to be written.

    Tells autograd of the write, which it cannot see if a kernel writes: a backward pass that saved
    what the record held then raises an error instead of being wrong.
    """
    torch.autograd.graph.increment_version(record)
    return record.detach() if record.requires_grad else record


def as_tensor(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this dtype on this device; a number is filled in there, so no copy is awaited.

    A number beyond the dtype's largest becomes that.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    largest = torch.finfo(dtype).max
    number: float = bounded(value, -largest, largest)
    return torch.full((), number, dtype=dtype, device=device)


def per_synapse(value: Tensor, shape: Sequence[int]) -> Tensor:
    """A constant that broadcasts to the synapses' shape as 0-d or ``[N]``."""
    return value.reshape(()) if value.numel() == 1 else value.expand(shape).reshape(-1)


@operator(fake=torch.empty_like)
def hold(pointer: Tensor) -> Tensor:
    """A copy of a pointer that a compiled graph keeps for its backward pass.

    A plain copy would be made again in backward, from a pointer that has been advanced since.
    """
    return pointer.clone()


@traced_as(lambda slot: slot)
def held(slot: Slot) -> Slot:
    """A slot that stays what it is now: one kept on the device is advanced in place.

    Compiled code is given copies in the first place.
    """
    return hold(slot) if isinstance(slot, Tensor) else slot


def flat_record(record: Tensor) -> Tensor:
    """``[K, B, *shape]`` as ``[K, B, N]``."""
    return record if record.ndim == 3 else record.view(*record.shape[:2], -1)


def flat_observation(x: Tensor) -> Tensor:
    """``[B, *shape]`` as ``[B, N]``."""
    return x if x.ndim == 2 else x.reshape(x.shape[0], -1)


@cache
def _load(name: str, backend: str) -> ModuleType:
    package = "launch" if backend == "triton" else "reference"
    return importlib.import_module(f"tritonsyn.{package}.{name}")


@traced_as(lambda device, requested: requested)
def running(device: torch.device, requested: str | None) -> str | None:
    """The backend that forward and backward pass share, whatever the default is by then.

    A compiled graph keeps the one that was asked for, and looks the default up when it runs.
    """
    return resolve(device, requested)


@traced_as(lambda rates: [None if rate is None else rate.view(rate.shape) for rate in rates])
def distinct(rates: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Where a Function is traced it takes no tensor twice; coupled states have one rate."""
    return rates


def implementation(name: str, device: torch.device, requested: str | None = None) -> ModuleType:
    """The module of this name that runs there: of ``tritonsyn.launch`` or ``.reference``.

    Both offer the same functions with the same arguments. Imported on first use, so that
    ``import tritonsyn`` loads no Triton.
    """
    return _load(name, resolve(device, requested))
