"""Argument checks that the operations share; each error says what was given and what is allowed."""

from collections.abc import Sequence

import torch

from ..arguments import finite, integer, nonnegative, positive
from ..packing import PackedSpikes, words_per_row
from ..rules import READ_MODES, RECORD_DTYPES, ReadRule, Slot


def check_input(name: str, x: object, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """``x`` is a real tensor of this shape on this device."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, but a {type(x).__name__} was given")
    if x.is_complex():
        raise TypeError(f"{name} must be bool, integer or floating, but is {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be dense, but its layout is {x.layout}")
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}, but must have {tuple(shape)}")
    check_device(name, x, device)
    return x


def check_floating(name: str, x: object) -> torch.Tensor:
    """``x`` is a dense floating tensor."""
    if isinstance(x, torch.Tensor) and x.is_floating_point() and x.layout == torch.strided:
        return x
    kind = f"{x.dtype}, {x.layout}" if isinstance(x, torch.Tensor) else type(x).__name__
    raise TypeError(f"{name} must be a dense floating tensor, but is {kind}")


def check_device(name: str, x: torch.Tensor, device: torch.device) -> None:
    """``x`` is on this device."""
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but the record is on {device}")


def check_packed(name: str, x: PackedSpikes) -> None:
    """The words are those of spikes of this shape: kernels read as many as it says."""
    words, shape = x
    if not isinstance(shape, tuple):
        raise TypeError(f"{name}.shape must be a tuple (T, B, *shape), but is {shape!r:.80}")
    if len(shape) < 3 or any(integer(f"{name}.shape", size) < 0 for size in shape):
        raise ValueError(f"{name}.shape must be (T, B, *shape), but is {shape}")
    dense = isinstance(words, torch.Tensor) and words.layout == torch.strided
    if not dense or words.dtype != torch.int32:
        raise TypeError(f"{name}.words must be a dense int32 tensor, but is {words!r:.80}")
    needed = (*shape[:2], words_per_row(x.synapses))
    if tuple(words.shape) != needed:
        raise ValueError(
            f"{name}.words has shape {tuple(words.shape)}, but must have {needed} "
            f"for spikes {shape}"
        )


def check_sequence(x: object) -> None:
    """``x`` is a sequence: a dense real tensor or packed spikes."""
    if isinstance(x, PackedSpikes):
        check_packed("x", x)
        return
    if not isinstance(x, torch.Tensor) or x.is_complex() or x.layout != torch.strided:
        raise TypeError(f"x must be a dense real tensor or PackedSpikes, but is {x!r:.80}")
    if x.ndim < 1:
        raise ValueError("x must have time as its first axis, but has no axis")


def check_selector(
    name: str, sel: object, shape: Sequence[int], device: torch.device
) -> torch.Tensor:
    """``sel`` holds times, of shape ``[1 or B, *shape]`` or with one axis more.

    Returned as they are if floating, whole ones in the default dtype.
    """
    if not isinstance(sel, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of times, but a {type(sel).__name__} was given")
    if sel.is_complex() or sel.dtype == torch.bool:
        raise TypeError(f"{name} must be floating or integer, but is {sel.dtype}")
    if sel.layout != torch.strided:
        raise TypeError(f"{name} must be dense, but its layout is {sel.layout}")
    batch, *inner = shape
    given = tuple(sel.shape)
    depth = len(shape)
    if (
        len(given) not in (depth, depth + 1)
        or given[0] not in (1, batch)
        or list(given[1:depth]) != inner
    ):
        allowed = ", ".join(str(size) for size in inner)
        first = "1" if batch == 1 else f"1 or {batch}"
        raise ValueError(
            f"{name} has shape {given}, but must have ({first}, {allowed}) or "
            f"({first}, {allowed}, D) with D times for each element"
        )
    check_device(name, sel, device)
    return sel if sel.is_floating_point() else sel.to(torch.get_default_dtype())


def check_record(name: str, record: object) -> torch.Tensor:
    """``record`` is a packed tensor ``[K, B, ...]`` of a dtype that records are kept in."""
    if not isinstance(record, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, but a {type(record).__name__} was given")
    if record.dtype not in (*RECORD_DTYPES, torch.bool):
        allowed = ", ".join(str(dtype) for dtype in RECORD_DTYPES)
        raise TypeError(
            f"{name} is {record.dtype}, but records are kept in {allowed} or torch.bool"
        )
    if record.ndim < 2 or record.shape[0] < 1:
        raise ValueError(
            f"{name} has shape {tuple(record.shape)}, but must have (K, B, ...), K >= 1"
        )
    if not record.is_contiguous():
        raise ValueError(f"{name} has strides {record.stride()}, but must be contiguous")
    return record


def check_slot(name: str, slot: Slot, slots: int) -> None:
    """``slot`` is a slot of the record. One kept on the device is taken on trust."""
    if isinstance(slot, torch.Tensor) and slot.dtype in (torch.int32, torch.int64):
        if slot.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(slot.shape)}, but must be one slot")
        return
    if not 0 <= integer(name, slot) < slots:
        raise IndexError(f"{name} is {slot}, but the record has slots 0 to {slots - 1}")


def check_records(
    name: str,
    records: Sequence[torch.Tensor],
    pointers: Sequence[Slot],
    shape: torch.Size | None = None,
) -> torch.Size:
    """One or two packed records of one shape, the given one if any, each with its slot."""
    for given, value in ((name, records), (f"pointers of {name}", pointers)):
        if not isinstance(value, Sequence):
            raise TypeError(f"{given} must be a sequence, but is {value!r:.80}")
    if len(records) not in (1, 2) or len(records) != len(pointers):
        raise ValueError(
            f"{name} must be one or two, each with a pointer, but there are {len(records)} and "
            f"{len(pointers)} pointers"
        )
    first = check_record(name, records[0])
    shape = first.shape if shape is None else shape
    for record, pointer in zip(records, pointers, strict=True):
        check_record(name, record)
        check_input(name, record, shape, first.device)
        check_slot(f"pointer of {name}", pointer, shape[0])
    return shape


def check_coefficients(
    name: str,
    values: Sequence[torch.Tensor | None],
    count: int,
    shape: torch.Size,
    device: torch.device,
) -> None:
    """As many as there are components, 0-d or one for each synapse of records of this shape."""
    if not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of {count}, but is {values!r:.80}")
    if len(values) != count:
        raise ValueError(f"{name} must be {count}, but there are {len(values)}")
    for value in values:
        if value is None:
            continue
        check_floating(name, value)
        if value.shape not in (torch.Size(), shape[2:]):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but must have () or {tuple(shape[2:])}"
            )
        check_device(name, value, device)


def check_rule(rule: ReadRule, rates: Sequence[torch.Tensor | None]) -> None:
    """The mode is known and has the rates that it needs, and the numbers are finite."""
    if not isinstance(rule, ReadRule):
        raise TypeError(f"rule must be a ReadRule, but is {rule!r:.80}")
    if rule.mode not in READ_MODES:
        raise ValueError(
            f"mode of the rule must be one of {', '.join(READ_MODES)}, but is {rule.mode!r}"
        )
    if rule.mode == "expdecay" and any(rate is None for rate in rates):
        raise ValueError("rates must be tensors for the mode 'expdecay', but one is None")
    positive("step of the rule", rule.step)
    nonnegative("limit of the rule", rule.limit)
    nonnegative("tolerance of the rule", rule.tolerance)
    if rule.overbound is not None:
        finite("overbound of the rule", float(rule.overbound))
