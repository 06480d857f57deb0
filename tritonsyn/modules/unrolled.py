"""The run of a delayed layer inside of ``with layer.unrolled(steps)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import ops
from ..values import PackedSpikes
from .state import check_not_compiled, check_run

if TYPE_CHECKING:
    from .projection import DelayedProjection

NOT_COMPILED = (
    "`with layer.unrolled(...)` and torch.compile do not go together: compile the step without it, "
    "with capturable=True"
)


class Unrolled:
    """Takes the steps of a layer whose state is on a tape until :meth:`end`.

    Where the autograd mode or the first input with a graph asks for it, a tape ends in the records
    and another begins there.
    """

    def __init__(self, layer: DelayedProjection, steps: int) -> None:
        self._layer, self._synapse, self._steps = layer, layer.synapse, steps
        self._left = steps
        self._tape: ops.Tape | None = None
        self._kind: Any = None

    def step(self, x: Any) -> Tensor:
        """The outputs for an input ``[B, I]``."""
        kind = _kind_of(x)
        if kind is None or kind != self._kind:
            if isinstance(x, PackedSpikes) or (kind is not None and len(kind[0]) == 3):
                raise RuntimeError(
                    "inside of `with layer.unrolled(...)` the layer takes single steps, or by "
                    "ahead() as many as its shortest delay"
                )
            x, self._kind = self._synapse.check_step(x), kind
        else:
            check_run()
        return self.steps(x)

    def steps(self, rows: Tensor) -> Tensor:
        """The same, or for several inputs ``[m, B, I]`` those of ``ahead``.

        Raises:
            ValueError: the batch is another one, or there are more steps than were announced.
        """
        check_not_compiled(NOT_COMPILED)
        count = 1 if rows.ndim == 2 else rows.shape[0]
        if count > self._left:
            done = self._steps - self._left
            raise ValueError(
                f"unrolled({self._steps}) has room for {self._steps} steps, but after {done} came "
                f"{count} more"
            )
        tape = self._tape
        if tape is None or rows.shape[-2] != tape.batch or not tape.takes(rows):
            tape = self._begin(rows)
        y = tape.step(rows)
        self._left -= count
        return y

    def _begin(self, rows: Tensor) -> ops.Tape:
        """A tape from the records on, for the steps that are left."""
        layer, synapse, batch = self._layer, self._synapse, rows.shape[-2]
        if self._tape is not None and self._tape.batch != batch:
            raise ValueError(
                f"x has a batch of {batch}, but this run is of a batch of {self._tape.batch}"
            )
        self.end()
        coefficients = synapse.coefficients()
        taps = layer.taps(coefficients)
        synapse.follow(batch, layer.backend)
        first = rows if rows.ndim == 3 else rows.unsqueeze(0)
        self._tape = synapse.unroll(first, coefficients, taps, self._left, layer.least_steps)
        return self._tape

    def end(self) -> None:
        """Gives the state back to the records, as plain steps would have left it."""
        tape, self._tape = self._tape, None
        if tape is not None:
            self._synapse.roll_up(tape)


def _kind_of(x: Any) -> tuple[Any, ...] | None:
    """What an input is accepted by; None of what is no plain tensor."""
    if x.__class__ is not Tensor or x.is_nested:
        return None
    return x.shape, x.dtype, x.device, x.layout
