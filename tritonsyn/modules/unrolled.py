"""Runs in which the state is on a tape: inside of ``with layer.unrolled(steps)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .. import checks, ops
from ..values import PackedSpikes, ReadRule
from .state import Stateful, check_not_compiled, check_run

if TYPE_CHECKING:
    from .synapse import ExponentialCurrent

_Owner = TypeVar("_Owner", bound=Stateful)
Begin = Callable[[Tensor, int], ops.Tape]
"""Makes the tape of a run with this first input ``[1, B, *shape]`` and so many steps."""

NOT_COMPILED = (
    "`with layer.unrolled(...)` and torch.compile do not go together: compile the step without it, "
    "with capturable=True"
)


@contextmanager
def unrolled(
    owner: _Owner,
    synapse: ExponentialCurrent,
    steps: int,
    begin: Begin,
    finish: Callable[[Tensor], Any],
) -> Iterator[_Owner]:
    """Until the block ends, steps of the owner go on a tape of its synapse."""
    steps = checks.positive_integer("steps", steps)
    check_not_compiled(NOT_COMPILED)
    synapse.check_at_home()
    check_run()
    if owner._unrolling is not None:
        raise RuntimeError("unrolled(...) of a module is within another unrolled(...) of it")
    owner._drop_plans()
    owner.__dict__["_unrolling"] = unrolling = Unrolling(synapse, steps, begin, finish)
    try:
        yield owner
    finally:
        del owner.__dict__["_unrolling"]
        unrolling.end()


class Unrolling:
    """Takes steps of a group of synapses, whose state is on a tape until :meth:`end`.

    Where the autograd mode or the first input with a graph asks for it, a tape ends in the records
    and another begins there.
    """

    def __init__(
        self, synapse: ExponentialCurrent, steps: int, begin: Begin, finish: Callable[[Tensor], Any]
    ) -> None:
        self._synapse, self._steps, self._begin, self._finish = synapse, steps, begin, finish
        self._axes, self._left = len(synapse.shape), steps
        self._tape: ops.Tape | None = None
        self._kind: Any = None

    def step(self, x: Any) -> Any:
        """What the tape gives for an input ``[B, *shape]``."""
        kind = _kind_of(x)
        if kind is None or kind != self._kind:
            if isinstance(x, PackedSpikes) or (kind is not None and len(kind[0]) == 2 + self._axes):
                raise RuntimeError(
                    "inside of `with layer.unrolled(...)` the layer takes single steps, or by "
                    "ahead() as many as no delay is shorter than"
                )
            x, self._kind = self._synapse.check_step(x), kind
        else:
            check_run()
        return self.steps(x)

    def steps(self, rows: Tensor) -> Any:
        """The same, or for several inputs ``[m, B, *shape]`` what ``ahead`` gives.

        Raises:
            ValueError: the batch is another one, or there are more steps than were announced.
        """
        check_not_compiled(NOT_COMPILED)
        single = rows.ndim == 1 + self._axes
        count = 1 if single else rows.shape[0]
        if count > self._left:
            done = self._steps - self._left
            raise ValueError(
                f"unrolled({self._steps}) has room for {self._steps} steps, but after {done} came "
                f"{count} more"
            )
        tape = self._tape
        if tape is None or rows.shape[-1 - self._axes] != tape.batch or not tape.takes(rows):
            tape = self._start(rows.unsqueeze(0) if single else rows)
        y = tape.step(rows if self._axes == 1 else rows.flatten(-self._axes))
        self._left -= count
        return self._finish(y)

    def _start(self, rows: Tensor) -> ops.Tape:
        """A tape from the records on, for the steps that are left."""
        if self._tape is not None and self._tape.batch != rows.shape[1]:
            raise ValueError(
                f"x has a batch of {rows.shape[1]}, but this run is of a batch of "
                f"{self._tape.batch}"
            )
        self.end()
        self._tape = self._begin(rows, self._left)
        return self._tape

    def end(self) -> None:
        """Gives the state back to the records, as plain steps would have left it."""
        tape, self._tape = self._tape, None
        if tape is not None:
            self._synapse.roll_up(tape)


class ReadAtTimes:
    """What a run of synapses gives that are read at the same times after each step."""

    def __init__(
        self, synapse: ExponentialCurrent, selector: Tensor | float, rule: ReadRule
    ) -> None:
        self._synapse, self._selector, self._rule = synapse, selector, rule

    def begin(self, x: Tensor, steps: int) -> ops.Tape:
        """A tape for a run of so many steps from ``x [1, B, *shape]`` on."""
        synapse, coefficients, batch = self._synapse, self._synapse.coefficients(), x.shape[1]
        size, device = (batch, *synapse.shape), x.device
        dtype = coefficients.rates[0].dtype
        self._times = checks.check_selector("selector", self._selector, size, device, dtype)
        slots = synapse.spike_.recordsz
        self._replaced = ops.replaced(self._times.detach(), self._rule, slots)
        times = (
            self._times.nan_to_num(0.0).reshape(len(self._times), synapse.count, -1).transpose(1, 2)
        )
        # At no time before the present is the present current.
        present = times.new_zeros(len(times), 1, synapse.count)
        delay = torch.cat((present, times), 1).flatten(0, 1)
        weight = torch.ones_like(delay, dtype=coefficients.rates[0].dtype)
        how: dict[str, Any] = {"backend": synapse.backend}
        taps = ops.taps(weight, delay, coefficients.rates, self._rule, slots, **how)
        synapse.follow(batch, synapse.backend)
        return synapse.unroll(x, coefficients, taps, steps, reads=times.shape[0])

    def finish(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The present current, and that at the times."""
        shape, dtype = self._synapse.shape, self._synapse.component_records()[0].storage.dtype
        y = y.to(dtype).unflatten(1, (-1, self._synapse.count))
        current = y[:, 0].unflatten(1, shape)
        delayed = y[:, 1:].transpose(1, 2).reshape(len(y), *self._times.shape[1:])
        if self._replaced is not None:
            unread, value = self._replaced
            delayed = torch.where(unread, value.to(dtype), delayed)
        return current, delayed


def _kind_of(x: Any) -> tuple[Any, ...] | None:
    """What an input is accepted by; None of what is no plain tensor."""
    if x.__class__ is not Tensor or x.is_nested:
        return None
    return x.shape, x.dtype, x.device, x.layout
