"""The base of modules that keep the past of a group of elements in records."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..backend import check_backend, resolve
from ..values import record_size
from .options import setting
from .record import RecordTensor
from .sequences import TakesSequences
from .state import check_run, ordinary_tensors

REBUILDS = "Setting it rebuilds the records and clears."


class Group(TakesSequences):
    """Elements of one shape with records of their past, which share size, step and pointer.

    Not for use by itself: a subclass makes records by :meth:`_add_record`.
    """

    def __init__(
        self,
        shape: Sequence[int] | int,
        step_time: float,
        delay: float,
        *,
        batch_size: int,
        batch_first: bool,
        capturable: bool,
        backend: str | None,
    ) -> None:
        super().__init__()
        self._sizes = checks.group_shape(shape)
        self._dt = checks.step_time("step_time", step_time)
        self._delay = checks.nonnegative("delay", delay)
        batch_size = checks.positive_integer("batch_size", batch_size)
        self._batch_first = checks.flag("batch_first", batch_first)
        self._capturable = checks.flag("capturable", capturable)
        self._backend = None if backend is None else check_backend(backend)
        self._check_size(self._dt, self._delay, batch_size)

    def _check_size(self, step_time: float, delay: float, batch_size: int) -> tuple[int, ...]:
        """The size of a record, which must not be too large for any tensor."""
        size = record_size(step_time, delay, inclusive=True), batch_size, *self._sizes
        checks.check_count("delay in steps, batch_size (batchsz) and shape", size)
        return size

    def _add_record(
        self,
        name: str,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device | None,
        carried: bool = False,
    ) -> None:
        blank = torch.zeros((batch_size, *self._sizes), dtype=dtype, device=device)
        how: dict[str, Any] = {"capturable": self._capturable, "backend": self._backend}
        record = RecordTensor(self._dt, self._delay, blank, inclusive=True, carried=carried, **how)
        record.reset(0)
        self.add_module(name, record)

    def _record_names(self) -> Sequence[str]:
        raise NotImplementedError

    def _records(self) -> list[RecordTensor]:
        return [self._modules[name] for name in self._record_names()]  # type: ignore[misc]

    @property
    def _storage(self) -> Tensor:
        """The storage of a record, of the group's batch and device."""
        return self._records()[0].storage

    # -- properties ---------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the group, without the batch."""
        return self._sizes

    dt: float = setting("dt", "Length of a step, ms.", checks.step_time, REBUILDS)
    capturable: bool = setting("capturable", "Whether the pointers are kept on the device.")

    @property
    def batchsz(self) -> int:
        """Batch size. Setting it rebuilds the records and clears.

        A new or cleared module takes the batch of its input.
        """
        return self._storage.shape[1]

    @batchsz.setter
    def batchsz(self, value: int) -> None:
        self._rebuild(batchsz=checks.positive_integer("batchsz", value))

    @property
    def step_axes(self) -> int:
        """Axes of the input of a step; a sequence has one more."""
        return len(self._sizes) + 1

    @property
    def count(self) -> int:
        """Number of elements in the group."""
        return math.prod(self._sizes)

    @property
    def batchedshape(self) -> tuple[int, ...]:
        """Shape of the group with the batch first."""
        return tuple(self._storage.shape[1:])

    @property
    def backend(self) -> str | None:
        """``"auto"``, ``"triton"``, ``"reference"``; None for the package's default."""
        return self._backend

    @backend.setter
    def backend(self, value: str | None) -> None:
        self._backend = None if value is None else check_backend(value)
        for record in self._records():
            record.backend = self._backend

    def _rebuild(self, **changed: Any) -> None:
        """Starts the records again, for another ``dt``, longest ``delay`` or ``batchsz``."""
        present = {"dt": self._dt, "delay": self._delay, "batchsz": self.batchsz}
        dt, delay, batchsz = (present | changed).values()
        self._check_run()
        size = self._check_size(dt, delay, batchsz)
        with ordinary_tensors():
            blanks = [record.storage.new_zeros(size) for record in self._records()]
        for record, blank in zip(self._records(), blanks, strict=True):
            record.restart(dt, delay, blank)
        self._forget_arrivals()
        self._dt, self._delay = dt, delay

    # -- state --------------------------------------------------------------------------------

    def clear(self, mask: Tensor | None = None, *, keep_adaptations: bool = False) -> None:
        """Clears the state: a past of zeros, pointer 0, no autograd graph.

        Args:
            mask: bool ``[B]``: only these samples are cleared; their past reads 0 from then on. The
                pointer stays, and so do graph and gradients of the others. None for all.
            keep_adaptations: as inferno's layers pass it on; there are none here.

        Raises:
            TypeError, ValueError: the mask is of another kind or shape, or on another device.
            RuntimeError: within a block of ``unrolled``, or in a backward pass.
        """
        self._check_run()
        if mask is not None:
            mask = checks.check_mask(mask, (self.batchsz,), self._storage.device)
            for record in self._records():
                record.blank(mask)
            return
        for record in self._records():
            record.rest()
        self._forget_arrivals()

    def _forget_arrivals(self) -> None:
        """Counts for pointers on the device begin again, where there are any."""

    def state(self) -> tuple[Tensor, ...]:
        """The past of the elements, as :meth:`load_state` takes it, here or in a module like this.

        Returns:
            A tensor of each record, ``[K, B, *shape]``, the oldest observation first: no pointer is
            needed, and states of several samples are joined along the second axis. All are copies,
            differentiable where a graph is recorded. Floating records in bfloat16 and float16 that
            synapses go on from are given in float32, the newest observation before it was rounded.

        Raises:
            RuntimeError: within a block of ``unrolled``.
        """
        self._check_read()
        return tuple(
            [observations for record in self._records() for observations in record.state()]
        )

    def load_state(self, state: tuple[Tensor, ...]) -> None:
        """Goes on from a copy of what :meth:`state` gave, bit for bit; the batch becomes its own.

        Gradients flow back to the tensors that have a graph.

        Args:
            state: a tuple of a tensor for each record, ``[K, B, *shape]``, the oldest observation
                first.

        Raises:
            TypeError, ValueError: it is not of this kind, shape, dtype or device; nothing changes.
            RuntimeError: within a block of ``unrolled``, or in a backward pass.
        """
        self._check_run()
        described = zip(self._record_names(), self._records(), strict=True)
        wanted = [record.described(name) for name, record in described]
        checks.check_explicit_state(state, wanted, self._storage.device)
        for record, observations in zip(self._records(), state, strict=True):
            record.load(observations)
        self._forget_arrivals()

    def detach_state(self) -> None:
        """Truncates backpropagation here: the state keeps its values and drops its graph.

        Raises:
            RuntimeError: within a block of ``unrolled``.
        """
        for record in self._records():
            record.detach_state()

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)
        batches = set()
        for name, record in zip(self._record_names(), self._records(), strict=True):
            record.check_state(state_dict, f"{prefix}{name}.", strict)
            keys = [f"{prefix}{name}.{key}" for key in ("storage", "pointer")]
            loaded = all(key in state_dict for key in keys)
            batches.add((state_dict[keys[0]] if loaded else record.storage).shape[1])
        if len(batches) > 1:
            raise RuntimeError(
                f"records of {prefix or 'the'} saved state would have batches of different sizes: "
                f"{sorted(batches)}"
            )

    # -- inputs -------------------------------------------------------------------------------

    def check_step(self, x: Any) -> Tensor:
        """The input ``[B, *shape]`` of a step; its batch is judged by :meth:`follow`.

        Raises:
            TypeError, ValueError, RuntimeError: it does not fit, or nothing can be run now.
        """
        check_run()
        x = checks.check_real("x", x)
        if x.shape[1:] != self._sizes or x.ndim < 2:
            step = ", ".join(str(size) for size in self.batchedshape)
            raise checks.misshapen("x", x, f"({step}), or (T, {step}) for a sequence")
        checks.check_device("x", x, self._storage.device)
        return x

    def check_sequence(self, x: Any) -> None:
        """Raises as :meth:`check_step` unless ``x`` is an input ``[T, B, *shape]`` of a scan."""
        check_run()
        checks.check_sequence(x)
        checks.check_device("x", x, self._storage.device)
        if len(x.shape) < 2 or tuple(x.shape[2:]) != self._sizes:
            sizes = ", ".join(str(size) for size in ("T", *self.batchedshape))
            raise checks.misshapen("x", x, f"({sizes})")

    def follow(self, batch: int, backend: str | None) -> None:
        """Makes the batch that of an input; raises ``ValueError`` unless the state is at rest."""
        if batch == self.batchsz:
            return
        if batch < 1:
            raise ValueError("x has a batch of 0, but must have at least one row")
        if not all(record.at_rest for record in self._records()):
            advice = "call clear() first: at rest the batch follows the input"
            if self._capturable:
                advice = "set batchsz, which clears"
            elif torch.compiler.is_compiling():
                advice = "set batchsz outside of torch.compile"
            raise ValueError(
                f"x has a batch of {batch}, but the state is of a batch of {self.batchsz}; {advice}"
            )
        resolve(self._storage.device, backend)  # which may fail, so before the change
        self._rebuild(batchsz=batch)
