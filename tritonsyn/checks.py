"""Validation of arguments; each error names the argument, its value and the rule."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .values import (
    READ_MODES,
    RECORD_DTYPES,
    STRATEGIES,
    PackedSpikes,
    ReadRule,
    Slot,
    compute_dtype,
    is_distributed,
    words_per_row,
)

Constant = float | Tensor
LARGEST_ROW = 2**31 - 2**20
"""Elements of a row of the batch: kernels count them in 32 bits, and Triton's largest tile, in part
of which there may be none, has 2**20."""
_Value = TypeVar("_Value")

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WIDE = (torch.uint16, torch.uint32, torch.uint64)
_REAL = frozenset((torch.bool, *_INTEGERS, *_WIDE, *RECORD_DTYPES))
"""Dtypes that values are computed from."""


def shown(value: object) -> str:
    """A value in an error, in one line, cut where it is long."""
    try:
        return f"{' '.join(repr(value).split()):.80}"
    except Exception:  # such as that of an integer with more digits than Python prints
        return f"of type {type(value).__name__}"


def finite(name: str, value: object) -> float:
    """A finite real number."""
    if isinstance(value, Tensor):
        value = _only_value(name, value)
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, but is {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, but is {number}")
    return number


def _only_value(name: str, value: Tensor) -> float:
    """What a tensor of one element holds, where no gradient to it would be lost."""
    if not _is_dense(value) or value.dtype == torch.bool or value.numel() != 1:
        raise TypeError(f"{name} must be a number, but is {_kind(value)}")
    if value.is_meta:
        raise ValueError(f"{name} is on meta, where tensors hold no values")
    if value.requires_grad:
        raise ValueError(
            f"{name} requires grad, but only its value counts here, which is not learned: "
            "pass the number"
        )
    return value.item()


def positive(name: str, value: object) -> float:
    """A finite number above zero."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, but is {number}")
    return number


def step_time(name: str, value: object) -> float:
    """A time between steps: above zero, and a normal float32, because times are divided by it."""
    number = positive(name, value)
    bounds = torch.finfo(torch.float32)
    if not bounds.tiny <= number <= bounds.max:
        raise ValueError(
            f"{name} must be within float32, {bounds.tiny:.4g} to {bounds.max:.4g}, but is {number}"
        )
    return number


def nonnegative(name: str, value: object) -> float:
    """A finite number, zero or above, that float32 can hold."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, but is {number}")
    return within(name, number, torch.float32)


def interval(low_name: str, low: object, high_name: str, high: object) -> tuple[float, float]:
    """Two finite numbers, the second greater than the first."""
    least, most = finite(low_name, low), finite(high_name, high)
    if not least < most:
        raise ValueError(f"{low_name} must be less than {high_name}, {most}, but is {least}")
    return least, most


def within(name: str, number: float, dtype: torch.dtype) -> float:
    """A number that does not overflow in this dtype."""
    if dtype.is_floating_point and not abs(number) <= torch.finfo(dtype).max:
        largest = torch.finfo(dtype).max
        raise ValueError(f"{name} must be at most {largest:.4g} in {dtype}, but is {number}")
    return number


def positive_integer(name: str, value: object) -> int:
    """A whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive integer, but is {shown(value)}")
    number = int(value)
    if not 0 < number < _END:
        allowed = "a positive integer" if number <= 0 else "less than 2**63"
        raise ValueError(f"{name} must be {allowed}, but is {shown(number)}")
    return number


_END = 2**63


def integer(name: str, value: Any) -> int:
    """A whole number."""
    # operator.index would turn a symbolic size of torch.compile into a number.
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        number = cast(int, value)
    else:
        try:
            # NumPy before 2.3 takes its own truth values for integers, and only warns.
            if isinstance(value, bool | np.bool_) or (
                isinstance(value, Tensor) and value.dtype == torch.bool
            ):
                raise TypeError
            number = operator.index(value)
        except (TypeError, RuntimeError):
            raise TypeError(f"{name} must be an integer, but is {shown(value)}") from None
    if not -_END <= number < _END:
        raise ValueError(f"{name} must be within 64 bits, but is {shown(value)}")
    return number


def flag(name: str, value: object) -> bool:
    """True or False."""
    if isinstance(value, bool) or (isinstance(value, numbers.Real) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, but is {shown(value)}")


def group_shape(value: object, name: str = "shape") -> tuple[int, ...]:
    """The shape of a group: one positive integer or a sequence of them."""
    if isinstance(value, numbers.Integral):
        value = (positive_integer(name, value),)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray) or not value:
        raise TypeError(
            f"{name} must be a positive integer or a sequence of them, but is {shown(value)}"
        )
    sizes = tuple(positive_integer(f"{name}[{i}]", size) for i, size in enumerate(value))
    check_row(name, *sizes)
    return sizes


def broadcasting_shape(name: str, value: object, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to that of the group; None means the group's own."""
    if value is None:
        return shape
    sizes = group_shape(value, name)
    pairs = zip(reversed(sizes), reversed(shape), strict=False)
    if len(sizes) > len(shape) or any(size not in (1, own) for size, own in pairs):
        raise ValueError(f"{name} must broadcast to shape, {shape}, but is {sizes}")
    return sizes


def check_count(name: str, sizes: Sequence[int]) -> None:
    """Tensors of these sizes have fewer bytes than an address can count."""
    if math.prod(sizes) >= _END // 8:
        raise ValueError(f"{name} must have fewer than 2**60 elements, but is {tuple(sizes)}")


def record_dtype(value: torch.dtype | None) -> torch.dtype:
    """A dtype that records of currents are kept in; None means torch's default dtype."""
    dtype = torch.get_default_dtype() if value is None else value
    if not isinstance(dtype, torch.dtype) or dtype not in RECORD_DTYPES:
        allowed = ", ".join(map(str, RECORD_DTYPES))
        raise TypeError(f"dtype must be one of {allowed}, but is {shown(dtype)}")
    return dtype


def device(value: Any) -> torch.device | None:
    """A device as torch takes it; None means torch's default device."""
    if value is None:
        return None
    try:
        return torch.device(value)
    except (TypeError, RuntimeError, ValueError, OverflowError):
        raise TypeError(f"device must be a torch device, but is {shown(value)}") from None


def optional(rule: Callable[[str, object], _Value]) -> Callable[[str, object], _Value | None]:
    """The same check, which also accepts None."""
    return lambda name, value: None if value is None else rule(name, value)


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """One of these words, in any case."""
    if not isinstance(value, str) or value.lower() not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but is {shown(value)}")
    return value.lower()


def constant(name: str, value: object, shape: Sequence[int], above_zero: bool) -> Constant:
    """A constant of the model: a number, or a floating tensor broadcastable to the group's shape.

    Every value must be finite, and greater than 0 if ``above_zero``, else not 0. Reads the values
    of a tensor on the host, except on the meta device, which holds none.
    """
    rule = "greater than 0" if above_zero else "nonzero"
    if not isinstance(value, Tensor):
        number = finite(name, value)
        if number == 0 or (above_zero and number < 0):
            raise ValueError(f"{name} must be {rule}, but is {number}")
        return number
    check_floating(name, value)
    check_broadcast(name, value, shape)
    if not value.is_meta:
        with torch.no_grad():
            bad = ~value.isfinite() | (value <= 0 if above_zero else value == 0)
        if bad.any():
            worst = value[bad].flatten()[0].item()
            raise ValueError(f"{name} must be finite and {rule}, but holds {worst}")
    return value


def check_holds_values(name: str, value: Tensor, device: torch.device) -> None:
    """The tensor is not on meta, where tensors hold no values, unless the device is."""
    if value.is_meta and device.type != "meta":
        raise ValueError(f"{name} is on meta, where tensors hold no values, not on {device}")


def is_readable(value: object) -> TypeGuard[Tensor]:
    """Whether the value is a dense tensor that holds values."""
    return isinstance(value, Tensor) and _is_dense(value) and not value.is_meta


def is_saved_number(saved: object, number: float) -> bool:
    """Whether what a state holds is this number, as a tensor of its dtype holds it."""
    if not isinstance(saved, Tensor):
        return saved == number
    fits = is_readable(saved) and saved.ndim == 0
    return fits and bool(saved == torch.tensor(number, dtype=saved.dtype, device=saved.device))


def check_mask(mask: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """``mask`` says of each sample, or of each connection, whether it is meant: bool."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, but is {_kind(mask)}")
    return check_input("mask", mask, shape, device)


def check_explicit_state(
    state: object, records: Sequence[tuple[str, torch.Size, torch.dtype]], device: torch.device
) -> None:
    """``state`` is a tuple with a tensor for each record, given as name, size and dtype.

    The batch, the second axis, may be of another size, the same in all of them.
    """
    names = ", ".join(name for name, _, _ in records)
    if not isinstance(state, tuple):
        raise TypeError(f"state must be a tuple of tensors ({names}), but is {shown(state)}")
    if len(state) != len(records):
        raise ValueError(f"state must have {len(records)} tensors ({names}), but has {len(state)}")
    for i, (value, (name, size, dtype)) in enumerate(zip(state, records, strict=True)):
        label = f"state[{i}] ({name})"
        value = check_real(label, value)
        if value.dtype != dtype:
            raise TypeError(f"{label} must be {dtype}, but is {value.dtype}")
        given, (slots, _, *inner) = list(value.shape), size
        if given[:1] + given[2:] != [slots, *inner] or value.ndim < 2 or given[1] < 1:
            sizes = ", ".join(str(n) for n in (slots, "B", *inner))
            raise misshapen(label, value, f"({sizes}), the oldest of {slots} observations first")
        if given[1] != state[0].shape[1]:
            raise ValueError(
                f"{label} has a batch of {given[1]}, but state[0] one of {state[0].shape[1]}"
            )
        check_device(label, value, device)


def bounded_integer(name: str, value: object, most: int) -> int:
    """A whole number in 0 to ``most``."""
    number = integer(name, value)
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be in 0 to {most}, but one is {shown(number)}")
    return number


def check_lengths(lengths: object, steps: int, batch: int, device: torch.device) -> Tensor:
    """Steps of each sample: integers ``[B]`` in 0 to ``steps``, int64 on the device.

    The values of a tensor on a GPU are not read but bounded.
    """
    if not isinstance(lengths, Tensor):
        if isinstance(lengths, str) or not isinstance(lengths, Sequence):
            raise TypeError(f"lengths must be integers, one a sample, but is {shown(lengths)}")
        given = [bounded_integer("lengths", length, steps) for length in lengths]
        lengths = torch.tensor(given, dtype=torch.int64, device="cpu")
    elif not _is_dense(lengths) or lengths.dtype not in _INTEGERS:
        raise TypeError(f"lengths must be dense and integer, but is {_kind(lengths)}")
    _check_own("lengths", lengths)
    if tuple(lengths.shape) != (batch,):
        raise misshapen("lengths", lengths, f"({batch},), one for each sample")
    if lengths.device.type != "cpu":
        check_device("lengths", lengths, device)
    elif not torch.compiler.is_compiling():
        for length in lengths.tolist():
            bounded_integer("lengths", length, steps)
    return lengths.to(device, torch.int64).clamp(0, steps)


def rounded(value: Constant, dtype: torch.dtype) -> Constant:
    """The constant as float64 or float32 holds it."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if dtype == torch.float64:
        return value
    # Veltkamp's splitting, which torch.compile can trace: it leaves the 24 bits of a float32.
    spread = value * (2.0**29 + 1.0)
    return spread - (spread - value)


def representable(name: str, value: Constant, dtype: torch.dtype) -> None:
    """Every value is a normal number of this dtype, or its negative."""
    info = torch.finfo(dtype)
    with torch.no_grad():
        size: Any = abs(value)
        outside = (size < info.tiny) | (size > info.max)
    if isinstance(outside, Tensor):
        outside = not outside.is_meta and bool(outside.any())
    if outside:
        raise ValueError(
            f"{name} must be between {info.tiny:.2g} and {info.max:.2g}, or the negative of that, "
            f"in the arithmetic's {dtype}, but is {value}"
        )


def misshapen(name: str, x: Tensor | PackedSpikes, wanted: object, advice: str = "") -> ValueError:
    """The error for a tensor of the wrong shape."""
    return ValueError(f"{name} has shape {tuple(x.shape)}, but must have {wanted}{advice}")


def check_graph(name: str, value: object) -> None:
    """Raises for a tensor with a graph, which a module cannot keep; a parameter has none."""
    learned = isinstance(value, Tensor) and value.requires_grad
    if learned and not isinstance(value, torch.nn.Parameter):
        raise ValueError(
            f"{name} requires grad but is not an nn.Parameter, so its graph would be lost; pass "
            "the parameter and derive values from it with torch.nn.utils.parametrize"
        )


def check_saved_shapes(
    present: Mapping[str, Tensor | None], state_dict: Mapping[str, Any], prefix: str
) -> None:
    """Raises for saved tensors of other shapes, or distributed where those of the module are not.

    It is raised before anything is loaded.
    """
    for name, tensor in present.items():
        saved = state_dict.get(prefix + name)
        if tensor is None or not isinstance(saved, Tensor):
            continue
        if saved.shape != tensor.shape:
            raise RuntimeError(
                f"{prefix}{name} of the saved state has shape {tuple(saved.shape)}, "
                f"but this module has {tuple(tensor.shape)}"
            )
        if is_distributed(saved) != is_distributed(tensor):
            given, own = (
                "a DTensor" if is_distributed(t) else "no DTensor" for t in (saved, tensor)
            )
            raise RuntimeError(
                f"{prefix}{name} of the saved state is {given}, but this module's is {own}: load "
                "by set_model_state_dict of torch.distributed.checkpoint.state_dict"
            )


def check_row(name: str, *sizes: int) -> None:
    """A row of the batch of these sizes has no more elements than kernels can count."""
    if math.prod(sizes) > LARGEST_ROW:
        raise ValueError(
            f"{name} has {math.prod(sizes)} elements in a row of the batch, but at most "
            f"{LARGEST_ROW} are allowed"
        )


def check_broadcast(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """The tensor is one value, or broadcastable to the group's shape."""
    if value.numel() == 1:
        return
    try:
        fits = torch.broadcast_shapes(value.shape, tuple(shape)) == tuple(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(shape)}"
        )


def check_broadcasts(name: str, value: Tensor, shape: torch.Size, others: str) -> torch.Size:
    """The shape that both broadcast to."""
    try:
        return torch.broadcast_shapes(value.shape, shape)
    except RuntimeError:
        raise misshapen(
            name, value, f"one that broadcasts with {tuple(shape)} of {others}"
        ) from None


def check_input(
    name: str, x: object, shape: Sequence[int], device: torch.device, owner: str = "record"
) -> Tensor:
    """``x`` is a dense real tensor of this shape, on the device of its owner."""
    x = check_real(name, x)
    if tuple(x.shape) != tuple(shape):
        raise misshapen(name, x, tuple(shape))
    check_device(name, x, device, owner)
    return x


def check_parameter(name: str, x: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """``x`` is a floating tensor of this shape, on the device of the records."""
    return check_input(name, check_floating(name, x), shape, device)


def check_step_input(
    name: str, x: object, shape: Sequence[int], device: torch.device, scan: str
) -> Tensor:
    """``x`` is the input of one step; an error says what takes sequences."""
    if isinstance(x, PackedSpikes):
        raise TypeError(f"{name} must be a tensor, but is a sequence of spikes; {scan} takes it")
    x, wanted = check_real(name, x), tuple(shape)
    given = tuple(x.shape)
    if given != wanted:
        advice = f"; {scan} takes sequences" if given[1:] == wanted else ""
        raise misshapen(name, x, wanted, advice)
    check_device(name, x, device)
    return x


def check_real(name: str, x: object) -> Tensor:
    """``x`` is a dense real tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, but a {type(x).__name__} was given")
    if x.dtype not in _REAL:
        raise TypeError(f"{name} must be bool, integer or floating, but is {x.dtype}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"{name} must be dense, but is {_kind(x)}")
    _check_own(name, x)
    return x


def _check_own(name: str, x: Tensor) -> None:
    """``x`` is not distributed over processes."""
    if is_distributed(x):
        raise TypeError(
            f"{name} must be what this process has, but is a DTensor, which scans and "
            "delayed_linear of tritonsyn.functional take, and modules with a ParallelStyle of "
            f"tritonsyn.distributed: pass {name}.to_local()"
        )


def check_floating(name: str, x: object) -> Tensor:
    """``x`` is a dense floating tensor of a dtype that records are kept in."""
    if isinstance(x, Tensor) and x.dtype in RECORD_DTYPES and _is_dense(x):
        return x
    raise TypeError(f"{name} must be a dense floating tensor, but is {_kind(x)}")


def _is_dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested and x.dtype in _REAL


def _kind(x: object) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    shape = "nested" if x.is_nested else f"of shape {tuple(x.shape)}"
    return f"{x.dtype}, {x.layout}, {shape}"


def check_device(
    name: str, x: Tensor | PackedSpikes, device: torch.device, owner: str = "record"
) -> None:
    """``x`` is on this device."""
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but the {owner} is on {device}")


def check_packed(name: str, x: object) -> None:
    """``x`` is packed, and ``words`` has the size that its ``shape`` implies: kernels trust it."""
    if not isinstance(x, PackedSpikes):
        raise TypeError(f"{name} must be PackedSpikes, but is {shown(x)}")
    words, shape = x
    if not isinstance(shape, tuple):
        raise TypeError(f"{name}.shape must be a tuple (T, B, *shape), but is {shown(shape)}")
    if len(shape) < 3 or any(integer(f"{name}.shape", size) < 0 for size in shape):
        raise ValueError(f"{name}.shape must be (T, B, *shape), but is {shape}")
    if not isinstance(words, Tensor) or not _is_dense(words) or words.dtype != torch.int32:
        raise TypeError(f"{name}.words must be a dense int32 tensor, but is {shown(words)}")
    needed = (*shape[:2], words_per_row(x.synapses))
    if tuple(words.shape) != needed:
        raise misshapen(f"{name}.words", words, f"{needed} for spikes {shape}")


def check_sequence(x: object) -> None:
    """``x`` is a sequence: a dense real tensor or packed spikes."""
    if isinstance(x, PackedSpikes):
        check_packed("x", x)
        return
    if not isinstance(x, Tensor) or not _is_dense(x):
        raise TypeError(f"x must be a dense real tensor or PackedSpikes, but is {_kind(x)}")
    if x.ndim < 1:
        raise ValueError("x must have time as its first axis, but has no axis")
    _check_own("x", x)


def check_coefficient(name: str, value: object, dtype: torch.dtype, device: torch.device) -> None:
    """``value`` is a finite number of this dtype or a dense real tensor that holds values."""
    if not isinstance(value, Tensor):
        within(name, finite(name, value), dtype)
        return
    if not _is_dense(value):
        raise TypeError(f"{name} must be dense and real, but is {_kind(value)}")
    check_holds_values(name, value, device)


def check_layer(x: Tensor | PackedSpikes, weight: Tensor, delay: Tensor, bias: object) -> None:
    """The input is a sequence of at least one step; weight, delay and bias make a layer for it."""
    check_sequence(x)
    if len(x.shape) != 3 or x.shape[0] == 0:
        raise misshapen("x", x, "(T, B, in) with T >= 1")
    check_floating("weight", weight)
    if weight.ndim != 2 or weight.shape[1] != x.shape[2]:
        raise misshapen("weight", weight, f"(out, in) for an input {tuple(x.shape)}")
    outputs, inputs = weight.shape
    shared = (1, inputs), (outputs, 1)
    if tuple(check_floating("delay", delay).shape) not in (weight.shape, *shared):
        wanted = f"{(outputs, inputs)}, or shared {shared[0]} or {shared[1]},"
        raise misshapen("delay", delay, f"{wanted} for an input {tuple(x.shape)}")
    for name, value in (("weight", weight), ("delay", delay)):
        for size in value.shape:
            check_row(name, size)
        check_device(name, value, x.device, owner="input")
    if bias is not None:
        check_input("bias", bias, weight.shape[:1], x.device)


def check_strategy(strategy: str, x: Tensor | PackedSpikes, decays: Sequence[Tensor]) -> str:
    """The strategy, if it is known and can take this input and these time constants."""
    strategy, spikes = one_of("strategy", strategy, STRATEGIES), x.dtype == torch.bool
    if strategy in ("bits", "events") and not (spikes and all(decay.ndim == 0 for decay in decays)):
        reason = "the time constants differ between inputs" if spikes else f"x is {x.dtype}"
        raise ValueError(
            f"strategy {strategy!r} needs spikes, bool or packed, and one time constant for all "
            f"inputs, but {reason}"
        )
    return strategy


def check_selector(
    name: str,
    sel: object,
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    steps: int | None = None,
) -> Tensor:
    """Times for each element of ``shape``, of which the first axis is the batch.

    ``sel`` is one time for all, a number or 0-d; or ``[1 or B, *shape]``, where any axis may be 1,
    or with one axis more. With ``steps`` that is what follows a first axis of this size. Returned
    with all axes of the group: a number in ``dtype``, integers in the default dtype.
    """
    inner = tuple(shape[1:])
    if not isinstance(sel, Tensor):
        if steps is not None or isinstance(sel, bool) or not isinstance(sel, numbers.Real):
            wanted = "a tensor of times" + (" or a number" if steps is None else " for each step")
            raise TypeError(f"{name} must be {wanted}, but a {type(sel).__name__} was given")
        if not torch.compiler.is_compiling():  # where a number may be a symbol
            sel = within(name, finite(name, sel), dtype)
        return torch.full((1, *inner), sel, dtype=dtype, device=device)  # type: ignore[arg-type]
    if sel.dtype == torch.bool or sel.dtype not in _REAL:
        raise TypeError(f"{name} must be floating or integer, but is {sel.dtype}")
    sel = check_real(name, sel)
    each = tuple(sel.shape) if steps is None else tuple(sel.shape[1:])
    known = steps is None or sel.shape[:1] == (steps,)
    if not known or not _fits_group(each, shape):
        raise misshapen(name, sel, _selector_shapes(shape, steps))
    if not each:
        each = (1,) * len(shape)
        sel = sel.view(*sel.shape, *each)
    full = each[0], *inner, *each[len(shape) :]
    check_row(name, *full[1:])
    check_device(name, sel, device)
    if full != each:
        sel = sel.expand(*sel.shape[: sel.ndim - len(full)], *full)
    return sel if sel.is_floating_point() else sel.to(torch.get_default_dtype())


def _fits_group(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether times of these sizes are one for all, or for each element, D or one of them."""
    if sizes == shape:
        return True
    fit = all(given in (1, own) for given, own in zip(sizes, shape, strict=False))
    return fit and len(sizes) in (0, len(shape), len(shape) + 1)


def _selector_shapes(shape: Sequence[int], steps: int | None) -> str:
    """The shapes that times for these elements may have, in words."""
    batch, *inner = shape
    sizes = ["1" if batch == 1 else f"1 or {batch}", *(str(size) for size in inner)]
    sizes = sizes if steps is None else [str(steps), *sizes]
    each, one = ", ".join(sizes), "()" if steps is None else f"({steps},)"
    many = f"({each}, D) with D times for each element"
    return f"({each}) or {many}, where any size of the group may be 1, or {one}"


def check_record(name: str, record: object) -> Tensor:
    """``record`` is a packed tensor ``[K, B, ...]`` of a dtype that records are kept in."""
    if not isinstance(record, Tensor):
        raise TypeError(f"{name} must be a tensor, but a {type(record).__name__} was given")
    if record.dtype in _REAL and not _is_dense(record):
        raise TypeError(f"{name} must be dense, but is {_kind(record)}")
    if record.dtype not in (*RECORD_DTYPES, torch.bool):
        allowed = ", ".join(str(dtype) for dtype in RECORD_DTYPES)
        raise TypeError(
            f"{name} is {record.dtype}, but records are kept in {allowed} or torch.bool"
        )
    if record.ndim < 2 or record.shape[0] < 1:
        raise misshapen(name, record, "(K, B, ...), K >= 1")
    _check_written(name, record)
    return record


def _check_written(name: str, state: Tensor) -> None:
    """Kernels can write the tensor's memory as it lies."""
    if not state.is_contiguous():
        raise ValueError(f"{name} has strides {state.stride()}, but must be contiguous")
    if not torch.compiler.is_compiling() and state.is_neg():  # which a graph cannot ask
        raise ValueError(f"{name} is a negated view, which cannot be written in place")


def check_slot(name: str, slot: Slot, slots: int) -> None:
    """``slot`` is a slot of the record. The value of one kept on the device is not checked."""
    if isinstance(slot, Tensor) and slot.dtype in (torch.int32, torch.int64):
        if slot.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(slot.shape)}, but must be one slot")
        return
    if not 0 <= integer(name, slot) < slots:
        raise IndexError(f"{name} is {slot}, but the record has slots 0 to {slots - 1}")


def check_records(
    name: str, records: Sequence[Tensor], pointers: Sequence[Slot], shape: torch.Size | None = None
) -> torch.Size:
    """One or two packed records of the same shape, which may be given, each with its slot."""
    for given, value in ((name, records), (f"pointers of {name}", pointers)):
        if not isinstance(value, Sequence):
            raise TypeError(f"{given} must be a sequence, but is {shown(value)}")
    if len(records) not in (1, 2) or len(records) != len(pointers):
        raise ValueError(
            f"{name} must be one or two, each with a pointer, but there are {len(records)} and "
            f"{len(pointers)} pointers"
        )
    first = check_record(name, records[0])
    check_row(name, *first.shape[2:])
    shape = first.shape if shape is None else shape
    for record, pointer in zip(records, pointers, strict=True):
        check_record(name, record)
        check_input(name, record, shape, first.device)
        check_slot(f"pointer of {name}", pointer, shape[0])
    return shape


def check_carry(name: str, carry: object, record: Tensor) -> None:
    """``carry`` is a packed observation of the record in the dtype of the arithmetic."""
    carry = check_input(name, carry, record.shape[1:], record.device)
    if carry.dtype != compute_dtype(record.dtype):
        raise TypeError(
            f"{name} must be {compute_dtype(record.dtype)}, in which a {record.dtype} record is "
            f"computed, but is {carry.dtype}"
        )
    _check_written(name, carry)


def check_coefficients(
    name: str, values: Sequence[Tensor | None], count: int, record: Tensor, or_none: bool = False
) -> list[Tensor | None]:
    """So many coefficients, each 0-d or with one for each synapse of the record.

    Returned 0-d or ``[N]``, in the dtype of the arithmetic.
    """
    if not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of {count}, but is {shown(values)}")
    if len(values) != count:
        raise ValueError(f"{name} must be {count}, but there are {len(values)}")
    for value in values:
        if value is None and or_none:
            continue
        value = check_floating(name, value)
        if value.shape not in (torch.Size(), record.shape[2:]):
            raise misshapen(name, value, f"() or {tuple(record.shape[2:])}")
        check_device(name, value, record.device)
    dtype = compute_dtype(record.dtype)
    exact = [None if value is None else value.to(dtype) for value in values]
    return [v.reshape(-1) if v is not None and v.ndim else v for v in exact]


def check_rule(rule: ReadRule, rates: Sequence[Tensor | None], dtype: torch.dtype) -> None:
    """The mode is known and has the rates that it needs, and records can hold the numbers."""
    if not isinstance(rule, ReadRule):
        raise TypeError(f"rule must be a ReadRule, but is {shown(rule)}")
    if not isinstance(rule.mode, str) or rule.mode not in READ_MODES:
        raise ValueError(
            f"mode of the rule must be one of {', '.join(READ_MODES)}, but is {shown(rule.mode)}"
        )
    if rule.mode == "alpha" and len(rates) != 2:
        raise ValueError(
            "mode 'alpha' reads two records, the rise and the current, with a rate for each, "
            f"but there are {len(rates)} rates"
        )
    if rule.mode in ("expdecay", "alpha") and any(rate is None for rate in rates):
        raise ValueError(f"rates must be tensors for the mode {shown(rule.mode)}, but one is None")
    step_time("step of the rule", rule.step)
    nonnegative("limit of the rule", rule.limit)
    nonnegative("tolerance of the rule", rule.tolerance)
    if rule.overbound is not None:
        given = rule.overbound
        number = finite("overbound of the rule", float(given) if isinstance(given, bool) else given)
        within("overbound of the rule", number, dtype)
