"""A tensor with a record of its past: a ring buffer as a torch module."""

import math
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import checks, ops
from ..backend import check_backend
from ..checks import check_input, check_record, check_selector
from ..functional import INTERPOLATIONS, interp_nearest
from ..ops.common import as_tensor, per_synapse, unchained
from ..ops.operator import traced_as
from ..physics import bounded, usable_time_constant
from ..values import RECORD_DTYPES, ReadRule, Slot, compute_dtype, highest_rate, record_size
from .options import setting
from .state import Stateful, converted, end_graph, ordinary_tensors, recorded_unless

Interpolation = Callable[..., Tensor]
_REBUILDS = "Setting it rebuilds the record and keeps the newest observations."


@traced_as(ops.hold)
def _as_kept(position: Tensor) -> Tensor:
    """A pointer on the device; compiled code copies it, because it is advanced in place."""
    return position


def _named(interp: Interpolation | str) -> Interpolation | str:
    """The mode's name where it is one of the known ones, else the function."""
    if callable(interp):
        return next((name for name, known in INTERPOLATIONS.items() if known is interp), interp)
    return checks.one_of("interp", interp, tuple(INTERPOLATIONS))


class RecordTensor(Stateful):
    """Observations of the last ``duration``, one per ``step_time``, in a ring buffer.

    The storage is ``[K, *shape]`` with ``K = ceil(duration / step_time)`` slots, plus one if
    ``inclusive``. ``pointer`` names the slot written next; offset ``o >= 1`` reads slot
    ``(pointer - o) mod K``, so offset 1 is the newest observation.

    Writing is in place. With ``inplace=False`` it is differentiable all the same: pushes, writes
    and reads chain as autograd Functions on the storage and cost one slot each, whatever K is.

    The storage is a tensor of the module's own and not a buffer, so that nothing that walks over
    buffers, such as ``DistributedDataParallel``, writes to it; with ``capturable=True`` it is one.

    Args:
        step_time: time between observations, in ms (or any unit that ``duration`` shares), > 0.
        duration: time that the record spans, >= 0.
        value: the first observation ``[B, ...]``, copied into every slot; float64, float32,
            bfloat16, float16 or bool. The record has its dtype and device.
        inclusive: whether an observation exactly ``duration`` ago is kept.
        capturable: keep the pointer on the device, so that steps can be captured in a CUDA graph
            and compiled without a new compilation for each of its values; pointer and storage are
            buffers then.
        carried: whether a record in bfloat16 or float16 has a :attr:`carry`.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message
            names it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import RecordTensor
        >>> record = RecordTensor(1.0, 3.0, torch.zeros(1, 2))
        >>> for n in range(5):
        ...     record.push(torch.full((1, 2), float(n)))
        >>> record.peek(), record.select(0.5, "linear")
        (tensor([[4., 4.]]), tensor([[3.5000, 3.5000]]))
    """

    storage: Tensor
    position: Tensor | None
    carry: Tensor | None
    """The newest observation in float32, from which a step continues; None if not carried.

    A step or a scan leaves it as it was before it was rounded, every other write as the record
    holds it. Writes into :attr:`value` do not change it.
    """

    def __init__(
        self,
        step_time: float,
        duration: float,
        value: Tensor,
        *,
        inclusive: bool = False,
        capturable: bool = False,
        carried: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self._dt = checks.step_time("step_time", step_time)
        self._duration = checks.nonnegative("duration", duration)
        self._inclusive = checks.flag("inclusive", inclusive)
        self._carried = checks.flag("carried", carried)
        self.backend = None if backend is None else check_backend(backend)
        capturable = checks.flag("capturable", capturable)
        value = checks.check_real("value", value)
        slots = record_size(self._dt, self._duration, self._inclusive)
        checks.check_count("value times the slots", (slots, *value.shape))
        with ordinary_tensors():
            first = value.detach().expand(slots, *value.shape)
            storage = first.clone(memory_format=torch.contiguous_format)
            position = torch.zeros((), dtype=torch.int64, device=value.device)
        check_record("value", storage)
        if capturable:
            self.register_buffer("storage", storage, persistent=False)
            self.register_buffer("carry", None, persistent=False)
        else:
            self.storage, self.carry = storage, None
        self.register_buffer("position", position if capturable else None, persistent=False)
        self._cursor = 0
        self._carry(storage[0])
        self._resting: tuple[weakref.ref[Tensor], int] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("backend", "_lent"):
            self._drop_plans()
        super().__setattr__(name, value)

    # -- properties ---------------------------------------------------------------------------

    dt: float = setting("dt", "Time between observations.", checks.step_time, _REBUILDS)
    duration: float = setting("duration", "Time spanned.", checks.nonnegative, _REBUILDS)
    inclusive: bool = setting(
        "inclusive", "Whether the one exactly ``duration`` ago is kept.", checks.flag, _REBUILDS
    )

    @property
    def recordsz(self) -> int:
        """Number of slots, K."""
        return self.storage.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return tuple(self.storage.shape[1:])

    @property
    def pointer(self) -> int:
        """Slot that is written next. Reading it waits for the device if ``capturable``."""
        return int(self.cursor)

    @property
    def capturable(self) -> bool:
        """Whether the pointer is kept on the device."""
        return self._buffers["position"] is not None

    @property
    def times(self) -> Tensor:
        """Step and duration, which tell whether a saved state is of such a record."""
        return torch.tensor([self._dt, self._duration], dtype=torch.float64, device="cpu")

    @property
    def cursor(self) -> Slot:
        """The pointer where it is kept: a number, or a tensor on the device if ``capturable``."""
        position = self._buffers["position"]
        return self._cursor if position is None else _as_kept(position)

    def _move_to(self, value: Slot) -> None:
        # Called by name where it may be compiled: torch 2.11 does not trace a property's setter,
        # but calls it after the graph, where it could refuse nothing.
        position = self._buffers["position"]
        if position is None:
            if torch.compiler.is_compiling():
                end_graph(
                    "under torch.compile a module must be made with capturable=True: its pointer "
                    "is a number, which a graph cannot move",
                    "torch.export takes a module with state if it is made with capturable=True, "
                    "and the program then keeps the state. Or export "
                    "tritonsyn.export.ExplicitState(net), which takes the state and returns it",
                )
            self._cursor = int(value)
        elif isinstance(value, Tensor):
            position.copy_(value)
        else:
            position.fill_(value)

    latest: Tensor = property(  # type: ignore[assignment]
        lambda record: record.peek(),
        lambda record, value: record.push(value),
        lambda record: record.decr(1),
        "Newest observation: reading peeks, setting pushes, deleting steps the pointer back.",
    )

    @property
    def value(self) -> Tensor:
        """The live storage ``[K, *shape]``, in slot order; later writes show in it.

        Setting takes over a tensor of the same shape, converted to the record's dtype; the pointer
        stays.
        """
        self._check_read()
        return self.storage

    @value.setter
    def value(self, value: Tensor) -> None:
        self._check_run()
        check_input("value", value, self.storage.shape, self.storage.device)
        self._replace(value.to(self.storage.dtype))
        self._carry_on()

    def extra_repr(self) -> str:
        return (
            f"{self.recordsz} slots of {self.shape}, {self.storage.dtype}, "
            f"step_time={self._dt}, duration={self._duration}, pointer={self.pointer}"
        )

    # -- reading ------------------------------------------------------------------------------

    def peek(self) -> Tensor:
        """Newest observation, a copy."""
        return self.read(1)

    def pop(self) -> Tensor:
        """Newest observation; the pointer steps back, so that the next push replaces it."""
        value = self.peek()
        self.incr(-1)
        return value

    def read(self, offset: int = 1) -> Tensor:
        """Observation ``offset`` steps before the pointer; 0 is the oldest.

        Args:
            offset: steps before the pointer; 1 is the newest observation.

        Returns:
            A copy ``[*shape]`` in the dtype of the record. Differentiable.

        Raises:
            TypeError: ``offset`` is not an integer.
        """
        self._check_read()
        storage, value = ops.read(self.storage, self._slot(checks.integer("offset", offset)))
        self.replace_storage(storage)
        return value

    def readrange(self, length: int, offset: int | Tensor = 1, forward: bool = False) -> Tensor:
        """Several observations in order of time, stacked last.

        Args:
            length: how many, 1 to K.
            offset: steps before the pointer at which they end; an integer tensor ``[*shape]`` gives
                each element its own range.
            forward: whether they begin at ``offset`` instead.

        Returns:
            ``[*shape, length]`` in the dtype of the record, a copy. Differentiable.

        Raises:
            TypeError, ValueError: ``length`` is out of range, or ``offset`` of another dtype or
                shape.
        """
        self._check_read()
        self._check_length(length, least=1)
        slots = self._range_slots(length, offset, forward)
        if slots.ndim == 1:
            return self.storage.index_select(0, slots).movedim(0, -1)
        # Not by gather, which would keep the storage itself for the backward pass.
        places = [torch.arange(size, device=slots.device) for size in self.shape]
        elements = (slots, *torch.meshgrid(*places, indexing="ij"))
        return self.storage[elements].movedim(0, -1)

    def select(
        self,
        time: Tensor | float,
        interp: Interpolation | str | None = None,
        *,
        tolerance: float = 1e-6,
        offset: int = 1,
        interp_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        r"""Values at times before the observation ``offset`` steps before the pointer.

        Args:
            time: one time for all, a number or 0-d; or a real tensor ``[1 or B, ...]`` or
                ``[1 or B, ..., D]``, where any axis but the last of D may be 1; in the unit of
                ``dt``. Tensor times outside of ``[0, dt * (K - 1)]`` read the limit; reading the
                values on the host to refuse them would stall a GPU.
            interp: how to read between observations: ``"nearest"`` (default), ``"previous"``,
                ``"next"``, ``"linear"``, ``"expdecay"``, ``"expratedecay"``, the function of
                that name in :mod:`tritonsyn.functional`, or any function of the same signature
                ``f(older, newer, sample_at, step_time, **interp_kwargs)``.
            tolerance: a time this close to an observation reads it, in the unit of ``dt``.
            offset: the observation at time 0, in steps before the pointer; 1 is the newest.
            interp_kwargs: ``time_constant`` for ``expdecay``, ``rate_constant`` for
                ``expratedecay``, any for your own function. A number must be above zero;
                tensors are not checked, because reading them would stall a GPU.

        Returns:
            ``[*shape]`` or ``[*shape, D]``, in the dtype of the record or of what your own function
            gives. Differentiable to the observations and the times.

        Raises:
            TypeError, ValueError: a number outside of the record, a tensor of the wrong shape,
                dtype or device, or another argument of the wrong kind.
        """
        self._check_read()
        limit = self._dt * (self.recordsz - 1)
        tolerance = checks.nonnegative("tolerance", tolerance)
        sel = self._as_selector(time, limit, tolerance)
        pointer = self._slot(checks.integer("offset", offset) - 1)
        rule = ReadRule("previous", self._dt, limit, tolerance)
        mode = _named(interp_nearest if interp is None else interp)
        kwargs = {} if interp_kwargs is None else interp_kwargs
        if not isinstance(kwargs, dict):
            raise TypeError(f"interp_kwargs must be a dict, but is {checks.shown(kwargs)}")
        if isinstance(mode, str):
            rate = self._rate(mode, kwargs)
            mode = "expdecay" if mode == "expratedecay" else mode
            return self._select(sel, pointer, rule._replace(mode=mode), rate)
        # A user's function, of both neighbours and the time between.
        older, newer = (
            self._select(sel.detach(), pointer, rule._replace(mode=side))
            for side in ("previous", "next")
        )
        sample_at = ops.time_since_older(sel, rule, self.recordsz)
        # It is not used at an observation, where its slope may be infinite.
        between = sample_at > 0
        inner = torch.where(between, sample_at, 0.5 * self._dt)
        return torch.where(between, mode(older, newer, inner, self._dt, **kwargs), older)

    def _select(
        self, sel: Tensor, pointer: Slot, rule: ReadRule, rate: Tensor | None = None
    ) -> Tensor:
        value, (storage,) = ops.select(
            (self.storage,), sel, (rate,), (pointer,), rule, backend=self.backend
        )
        self.replace_storage(storage)
        return value

    # -- writing ------------------------------------------------------------------------------

    def push(self, obs: Tensor, inplace: bool = False) -> None:
        """Writes an observation at the pointer and advances it. See :meth:`write`.

        Args:
            obs: ``[*shape]`` of any real dtype, converted to the record's.
            inplace: record no autograd graph, and drop the one there is.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The record is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        if isinstance(inplace, bool) and self._again("push", obs, not inplace):
            return
        self.write(obs, 0, inplace)
        self.advance(1)
        self._carry_on(inplace)
        if self.carry is None and not self.storage.requires_grad:
            self._plan("push", obs, lambda: self._planned_push(obs))

    def _planned_push(self, obs: Tensor) -> ops.PushPlan | None:
        """The next push, prepared for an observation of this kind; None where it cannot be."""
        home = ops.Home([self.place()], cursors([self]))
        return ops.push_again(self.storage, obs, home, backend=self.backend)

    def write(self, obs: Tensor, offset: int = 0, inplace: bool = False) -> None:
        """Replaces the observation ``offset`` steps before the pointer; 0 is the oldest.

        Args:
            obs: ``[*shape]`` of any real dtype, converted to the record's.
            offset: steps before the pointer.
            inplace: record no autograd graph, and drop the one there is.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The record is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        self._check_run()
        slot = self._slot(checks.integer("offset", offset))
        check_record("record", self.storage)
        check_input("value", obs, self.storage.shape[1:], self.storage.device)
        with recorded_unless(inplace):
            self.replace_storage(ops.push(self.storage, obs, slot, backend=self.backend))
        if (offset - 1) % self.recordsz == 0:
            self._carry_on(inplace)

    def writerange(
        self, obs: Tensor, offset: int | Tensor = 0, forward: bool = False, inplace: bool = False
    ) -> None:
        """Replaces several observations, stacked last in order of time.

        Args:
            obs: ``[*shape, length]`` of any real dtype, converted; at most K observations.
            offset: steps before the pointer at which the range ends, as for :meth:`readrange`; 0 is
                the slot written next.
            forward: whether the range begins at ``offset`` instead.
            inplace: record no autograd graph, and drop the one there is.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device, or more observations than slots.
                The record is as before.
        """
        self._check_run()
        if checks.check_real("obs", obs).ndim != len(self.shape) + 1:
            raise checks.misshapen("obs", obs, (*self.shape, "length"))
        check_input("obs", obs, (*self.shape, obs.shape[-1]), self.storage.device)
        self._check_length(obs.shape[-1], least=1)
        slots = self._range_slots(obs.shape[-1], offset, forward)
        rows = obs.movedim(-1, 0).to(self.storage.dtype)
        with recorded_unless(inplace):
            if isinstance(offset, Tensor):
                storage = self.storage if torch.is_grad_enabled() else self.storage.detach()
                self._replace(storage.scatter(0, slots, rows))
            else:
                first = self._slot(offset if forward else offset + len(rows) - 1)
                self.replace_storage(ops.write_rows(self.storage, rows, first))
        self._carry_on(inplace)

    def extend(self, rows: Tensor, steps: int | None = None, inplace: bool = False) -> None:
        """Pushes several observations, stacked first in order of time.

        Args:
            rows: ``[L, *shape]``, at most K observations, converted to the record's dtype.
            steps: how many were made, of which ``rows`` are the last; the pointer advances by as
                many. None: ``L``.
            inplace: record no autograd graph, and drop the one there is.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device, or fewer steps than rows. The
                record is as before.
        """
        self._check_run()
        length = checks.check_real("rows", rows).shape[:1]
        check_input("rows", rows, (*length, *self.shape), self.storage.device)
        steps = rows.shape[0] if steps is None else checks.integer("steps", steps)
        if steps < rows.shape[0]:
            raise ValueError(f"steps must be at least the {rows.shape[0]} rows, but is {steps}")
        if rows.shape[0] > self.recordsz:
            raise checks.misshapen("rows", rows, f"(L, *{self.shape}), L in 0 to {self.recordsz}")
        with recorded_unless(inplace):
            slot = self._slot(rows.shape[0] - steps)
            self.replace_storage(ops.write_rows(self.storage, rows, slot))
        self.advance(steps)
        if self._carried and len(rows):
            with recorded_unless(inplace):
                self._carry(rows[-1])

    def history(self, length: int) -> Tensor:
        """The newest observations in order of time, stacked first.

        Args:
            length: how many, 0 to K.

        Returns:
            ``[length, *shape]`` in the dtype of the record, a copy. Differentiable.

        Raises:
            TypeError, ValueError: ``length`` is not an integer, or out of range.
        """
        self.check_at_home()
        self._check_length(length, least=0)
        if isinstance(self.cursor, int):
            return self.storage.roll(-self.cursor, 0)[self.recordsz - length :]
        return self.storage.index_select(0, self._range_slots(length, 1))

    def incr(self, pos: int = 1) -> int:
        """Moves the pointer forward.

        Args:
            pos: steps to move by; negative ones move it back.

        Returns:
            The slot where it is then. If ``capturable``, reading it waits for the device.

        Raises:
            TypeError: ``pos`` is not an integer.
        """
        self._check_run()
        self.advance(checks.integer("pos", pos))
        self._carry_on()
        return self.pointer

    def decr(self, pos: int = 1) -> int:
        """Moves the pointer back.

        Args:
            pos: steps to move by.

        Returns:
            The slot where it is then. If ``capturable``, reading it waits for the device.

        Raises:
            TypeError: ``pos`` is not an integer.
        """
        return self.incr(-checks.integer("pos", pos))

    def advance(self, steps: int = 1) -> None:
        """Moves the pointer forward without asking the device where it is.

        For modules: a :attr:`carry` stays as it is.

        Args:
            steps: steps to move by.
        """
        if self._buffers["position"] is None and not torch.compiler.is_compiling():
            # Bypasses nn.Module's __getattr__ and __setattr__, because every step comes here.
            self.__dict__["_cursor"] = (self._cursor + steps) % self.storage.shape[0]
        else:
            self._move_to((self.cursor + steps) % self.recordsz)

    def place(self, name: str = "storage") -> tuple[dict[str, Any], str]:
        """Where a tensor of this record is kept, for plans, which do not ask the module."""
        return (self._buffers if self.capturable else self.__dict__), name

    def replace_storage(self, storage: Tensor) -> None:
        """Makes the result of an operation on the storage the storage from now on."""
        if storage is not self.storage:
            self.storage = storage

    def align(self, index: int = 0) -> None:
        """Rolls the storage so that the oldest observation, and the pointer, are at ``index``.

        Args:
            index: a slot, 0 to K - 1.

        Raises:
            TypeError, IndexError: there is no such slot.
        """
        self._check_run()
        if not 0 <= checks.integer("index", index) < self.recordsz:
            raise IndexError(f"index must be in 0 to {self.recordsz - 1}, but is {index}")
        self._replace(self.storage.roll(index - self.pointer, 0))
        self._move_to(index)

    def reset(self, fill: float | bool | None = 0) -> None:
        """Fills every slot, drops the autograd graph and puts the pointer at 0.

        Args:
            fill: the value of all observations. None: they stay, and are aligned to slot 0.

        Raises:
            TypeError, ValueError: ``fill`` is not a finite number that the record's dtype holds.
        """
        self._check_run()
        if fill is None:
            self.align(0)
            return
        if not isinstance(fill, bool):
            fill = checks.within("fill", checks.finite("fill", fill), self.storage.dtype)
        if fill == 0:
            self.rest()
        else:
            self._fill(fill)

    def rest(self) -> None:
        """What ``reset(0)`` does; for modules that have checked that it may be done."""
        if not (self.at_rest and self._cursor == 0) or self._has_graph():
            self._fill(0)
            self._resting = self._stamp()

    def _fill(self, fill: float | bool) -> None:
        self.detach_state()
        self.storage.fill_(fill)
        self._move_to(0)
        self._carry_on()

    def blank(self, mask: Tensor) -> None:
        """Makes the observations of samples ``mask [B]`` zero; for modules that clear."""
        if self.at_rest:
            return
        # A copy, because backward passes need it and the caller may change it.
        rows = mask.clone().view(-1, *(1 for _ in self.shape[1:]))
        self.replace_storage(ops.blank(self.storage, rows))
        if self.carry is not None:
            self._carry(self.carry.masked_fill(rows, 0.0))

    def restart(self, step_time: float, duration: float, storage: Tensor) -> None:
        """Takes over other times and a storage of zeros; for modules that rebuild records."""
        self._dt, self._duration = step_time, duration
        self.storage = storage
        self._carry(storage[0])
        self._move_to(0)
        self._resting = self._stamp()

    @property
    @traced_as(lambda record: False)
    def at_rest(self) -> bool:
        """Whether it is certain, without reading them, that all observations are zero.

        This holds from ``reset(0)`` until anything writes to the storage; False may mean unknown.
        Writes through ``.data`` or ``.numpy()`` are missed: PyTorch does not count them.
        """
        # The replay of a CUDA graph writes without being counted.
        if self._resting is None or self.capturable:
            return False
        tensor, version = self._resting
        return tensor() is self.storage and version == self.storage._version

    @traced_as(lambda record: None)
    def _stamp(self) -> tuple[weakref.ref[Tensor], int] | None:
        """The tensor and how often it has been written; None if that is not counted.

        The address would not do: another storage, such as a copy's, may reuse it.
        """
        if self.storage.is_inference():
            return None
        return weakref.ref(self.storage), self.storage._version

    def detach_state(self) -> None:
        """Drops the autograd graph; the observations and the pointer stay."""
        self.check_at_home()
        if not self._has_graph():
            return
        at_rest = self.at_rest
        self.storage = self.storage.detach()
        if self.carry is not None:
            self.carry = self.carry.detach()
        if at_rest:
            self._resting = self._stamp()

    def _has_graph(self) -> bool:
        carry = self.carry
        return self.storage.requires_grad or (carry is not None and carry.requires_grad)

    # -- the carry ----------------------------------------------------------------------------

    def newest(self) -> Tensor:
        """A copy of the newest observation as a step starts from it; the carry, if there is one."""
        self._check_read()
        return self.peek() if self.carry is None else self.carry.clone()

    def _needs_carry(self, storage: Tensor) -> bool:
        return self._carried and storage.dtype in (torch.bfloat16, torch.float16)

    def _carry(self, value: Tensor) -> None:
        """Makes a value the carry, if the record needs one."""
        if not self._needs_carry(self.storage):
            if self.carry is not None:
                self.carry = None
        elif self.carry is not None and self.carry.shape == value.shape:
            # In its own memory, whose address a CUDA graph may hold.
            self.carry = unchained(self.carry).copy_(value)
        else:
            with ordinary_tensors():
                self.carry = value.to(self.storage.device, torch.float32, copy=True)

    def _carry_on(self, inplace: bool = False) -> None:
        """Carries the newest observation, after a write or a move of the pointer."""
        if self.carry is not None:
            with recorded_unless(inplace):
                self._carry(self.peek())

    # -- internals ----------------------------------------------------------------------------

    def _replace(self, storage: Tensor) -> None:
        """Replaces the observations, in the record's own memory.

        With the pointer on the device the memory stays the same: a CUDA graph may hold its address.
        """
        present = self.storage
        with ordinary_tensors():
            fits = storage.dtype == present.dtype and storage.shape == present.shape
            if self.capturable and fits and not storage.requires_grad:
                self.storage = present.detach().copy_(storage)
            else:
                self.storage = storage.clone(memory_format=torch.contiguous_format)

    def _slot(self, offset: int) -> Slot:
        return (self.cursor - offset) % self.recordsz

    def _check_length(self, length: int, least: int) -> None:
        if not least <= checks.integer("length", length) <= self.recordsz:
            raise ValueError(f"length must be in {least} to {self.recordsz}, but is {length}")

    def _range_slots(self, length: int, offset: int | Tensor, forward: bool = False) -> Tensor:
        """Slots of a range, oldest first: ``[length]``, or ``[length, *shape]`` for a tensor."""
        steps = torch.arange(length, device=self.storage.device)
        if isinstance(offset, Tensor):
            if offset.is_floating_point():
                raise TypeError(f"offset must be integer, but is {offset.dtype}")
            check_input("offset", offset, self.shape, self.storage.device)
            steps = steps.view(-1, *(1 for _ in self.shape))
            offset = offset.to(torch.int64)
        else:
            offset = checks.integer("offset", offset)
        first = offset if checks.flag("forward", forward) else offset + (length - 1)
        return (self.cursor - first + steps) % self.recordsz

    def _as_selector(self, time: Tensor | float, limit: float, tolerance: float) -> Tensor:
        if isinstance(time, Tensor):
            return check_selector("time", time, self.shape, self.storage.device, torch.float64)
        number = checks.finite("time", time)
        if not -tolerance <= number <= limit + tolerance:
            raise ValueError(
                f"time must be within the record, {-tolerance} to {limit + tolerance}, "
                f"but is {number}"
            )
        shape, device = (1, *self.shape[1:]), self.storage.device
        return torch.full(shape, number, dtype=torch.float64, device=device)

    def _rate(self, mode: str, kwargs: dict[str, Any]) -> Tensor | None:
        """Steps over time constant, for the modes that decay."""
        unknown = kwargs.keys() - {"time_constant", "rate_constant"}
        if unknown:
            raise TypeError(f"interp_kwargs of a known mode cannot hold {sorted(unknown)}")
        wanted = {"expdecay": "time_constant", "expratedecay": "rate_constant"}.get(mode)
        if wanted is None:
            return None
        if wanted not in kwargs:
            raise TypeError(f"interp_kwargs must hold {wanted!r} for the mode {mode!r}")
        value, device = kwargs[wanted], self.storage.device
        dtype = compute_dtype(self.storage.dtype)
        if isinstance(value, Tensor):
            checks.check_coefficient(wanted, value, dtype, device)
            checks.check_broadcast(wanted, value, self.shape[1:])
            value = value.to(device, dtype)
        else:
            value = checks.positive(wanted, value)
        if mode == "expdecay":
            rate = self._dt / usable_time_constant(value, self._dt, dtype)
        else:
            rate = bounded(self._dt * value, -math.inf, highest_rate(dtype))
        return per_synapse(as_tensor(rate, dtype, device), self.shape[1:])

    def _rebuild(self, **changed: Any) -> None:
        """Takes over other times: newest observations are kept, and older ones are zero."""
        self.check_at_home()
        times = [changed.get(n, getattr(self, n)) for n in ("dt", "duration", "inclusive")]
        slots = record_size(*times)
        if slots != self.recordsz:
            kept = min(slots, self.recordsz)
            with ordinary_tensors():
                newest = self.storage.detach().roll(-self.pointer, 0)[-kept:]
                storage = newest.new_zeros(slots, *self.shape)
                storage[-kept:] = newest
            self.storage = storage
            self._move_to(0)
        self._dt, self._duration, self._inclusive = times

    # -- state --------------------------------------------------------------------------------

    def state(self) -> tuple[Tensor]:
        """The observations, as :meth:`load_state` takes them.

        Returns:
            A tuple of one tensor ``[K, *shape]``, the oldest observation first. It is a copy,
            differentiable where a graph is recorded. A record with a :attr:`carry` gives float32,
            the newest observation as it is carried.
        """
        self._check_read()
        observations = self.history(self.recordsz)
        if self.carry is not None:
            older = observations[:-1].to(self.carry.dtype)
            observations = torch.cat((older, self.carry.unsqueeze(0)))
        return (observations,)

    def load_state(self, state: tuple[Tensor]) -> None:
        """Takes over a copy of what :meth:`state` gave, of a batch of any size; the pointer is 0.

        Gradients flow back to its tensor where a graph is recorded.

        Args:
            state: a tuple of one tensor ``[K, B, ...]``, the oldest observation first.

        Raises:
            TypeError, ValueError: it is not of this kind, shape, dtype or device; nothing changes.
        """
        self._check_run()
        checks.check_explicit_state(state, [self.described("record")], self.storage.device)
        self.load(*state)

    def described(self, name: str) -> tuple[str, torch.Size, torch.dtype]:
        """Name, shape and dtype of what :meth:`state` gives; for modules that check a state."""
        kept_in = self.storage if self.carry is None else self.carry
        return name, self.storage.shape, kept_in.dtype

    def load(self, observations: Tensor) -> None:
        """What :meth:`load_state` does; for modules that have checked that it may be done."""
        self._move_to(0)
        present, kept = self.storage, observations.to(self.storage.dtype)
        linked = present.requires_grad or (kept.requires_grad and torch.is_grad_enabled())
        if linked or kept.shape != present.shape:
            self._replace(kept)
        else:  # which plans and CUDA graphs know
            unchained(present).copy_(kept)
        self._carry(observations[-1])

    def _parts(self) -> dict[str, Tensor]:
        """The tensors that hold observations: the storage and, if there is one, the carry."""
        parts = {"storage": self.storage, "carry": self.carry}
        return {name: part for name, part in parts.items() if part is not None}

    def own_keys(self) -> tuple[set[str], set[str]]:
        return {"storage", "pointer"}, {"times", "carry"}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.check_at_home()
        # Copies: the storage is written in place, and a state kept in memory must not follow.
        for name, kept in self._parts().items():
            destination[prefix + name] = kept if keep_vars else kept.detach().clone()
        destination[prefix + "pointer"] = torch.tensor(self.pointer, device="cpu")
        destination[prefix + "times"] = self.times

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)

        def refuse(key: str, why: str) -> NoReturn:
            raise RuntimeError(f"{prefix}{key} of the saved state {why}")

        if not {prefix + "storage", prefix + "pointer"} <= state_dict.keys():
            return
        for key in ("storage", "times", "carry"):
            given = state_dict.get(prefix + key)
            if given is None and key != "storage":
                continue
            if not isinstance(given, Tensor) or given.layout != torch.strided:
                refuse(key, f"is not a dense tensor: {checks.shown(given)}")
            if given.is_meta and not self.storage.is_meta:
                refuse(key, "is on meta, where tensors hold no values")
        saved, own = state_dict[prefix + "storage"], self.storage
        times = state_dict.get(prefix + "times")
        if times is not None and times.tolist() != self.times.tolist():
            given = f"are step time and delay {times.tolist()}"
            refuse("times", f"{given}, but this record has {self.times.tolist()}")
        # The batch may be of another size.
        if saved.ndim != own.ndim or saved[:, :0].shape != own[:, :0].shape:
            given = f"has shape {tuple(saved.shape)} (slots, batch, group)"
            wanted = f"{tuple(own.shape)}: delay, step time or shape differ"
            refuse("storage", f"{given}, but this record has {wanted}")
        allowed = RECORD_DTYPES if own.is_floating_point() else (own.dtype,)
        if saved.dtype not in allowed:
            refuse("storage", f"is {saved.dtype}, but this record is {own.dtype}")
        if saved.shape[1] < 1:
            refuse("storage", "has a batch of 0")
        if self.capturable and own.is_meta and not saved.is_meta:
            refuse("storage", "has values, but this record is on meta; call to_empty() first")
        carry = state_dict.get(prefix + "carry")
        if carry is not None and (carry.shape != saved.shape[1:] or not carry.is_floating_point()):
            refuse("carry", f"is {carry.dtype} {tuple(carry.shape)}, but must be one observation")
        try:
            index = operator.index(state_dict[prefix + "pointer"])
        except (TypeError, RuntimeError):
            given = checks.shown(state_dict[prefix + "pointer"])
            refuse("pointer", f"is not an integer: {given}")
        if not 0 <= index < self.recordsz:
            refuse("pointer", f"is {index}, but this record has slots 0 to {self.recordsz - 1}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        local_metadata, _, missing, _, _ = args
        absent = [key for key in ("storage", "pointer") if prefix + key not in state_dict]
        missing += [prefix + key for key in absent]
        if absent:
            return
        saved, carry = state_dict[prefix + "storage"].detach(), state_dict.get(prefix + "carry")
        pointer = int(state_dict[prefix + "pointer"])
        assign = local_metadata.get("assign_to_params_buffers", False)
        self._replace(saved if assign else saved.to(self.storage))
        self._move_to(pointer)
        newest = saved[pointer - 1] if carry is None else carry.detach()
        if self._needs_carry(self.storage):
            self._carry(newest)
        elif carry is not None:
            self.storage[pointer - 1] = newest
        if not any(part.is_meta or part.any() for part in self._parts().values()):
            self._resting = self._stamp()

    # -- copies and conversions ---------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.check_at_home()
        at_rest = self.at_rest
        with ordinary_tensors():
            storage = converted(self.storage, fn)
            if self.storage.is_floating_point():
                checks.record_dtype(storage.dtype)
            if self._needs_carry(storage):
                newest = self.newest() if self.carry is None else self.carry
                self.carry = converted(newest, fn, keep_dtype=True).to(torch.float32)
            elif self.carry is not None:
                last = torch.as_tensor((self.cursor - 1) % len(storage), device=storage.device)
                newest = converted(self.carry, fn, keep_dtype=True).to(storage.dtype)
                storage = storage.index_copy(0, last.view(1), newest.unsqueeze(0))
                self.carry = None
            self.storage = storage
            if self.position is not None:
                self.position = converted(self.position, fn)
            if at_rest:  # also of memory without values, as to_empty makes it
                for part in self._parts().values():
                    part.zero_()
        self._resting = self._stamp() if at_rest else None
        return self

    def _values(self) -> dict[str, Any]:
        # Without the graph, which can neither be copied nor pickled, and in memory of their own,
        # because torch.multiprocessing shares that of what it sends.
        state = {**super()._values(), "_resting": self.at_rest}
        holder = state
        if self.capturable:
            holder = state["_buffers"] = dict(self._buffers)
        holder.update({name: kept.detach().clone() for name, kept in self._parts().items()})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_resting": None})
        if self.storage.is_inference():
            self._apply(Tensor.clone)
        self._resting = self._stamp() if state["_resting"] else None


def cursors(records: Sequence[RecordTensor]) -> list[dict[str, Any]]:
    """Where the pointers of some records are kept as ``_cursor``, for plans; none on the device."""
    return [record.__dict__ for record in records if not record.capturable]
