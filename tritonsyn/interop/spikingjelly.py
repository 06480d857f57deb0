"""SpikingJelly: a ``MemoryModule`` with step modes, for ``reset_net`` and ``detach_net``."""

from typing import Any

from spikingjelly.activation_based import base
from torch import Tensor

from .. import checks
from ..modules.sequences import is_sequence
from .common import Module, accepted, records


class Memory(base.MemoryModule):
    """A module of tritonsyn as one of SpikingJelly; made by :func:`adapt`.

    Args:
        module: the module of tritonsyn, kept as ``module``.
    """

    module: Module

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module, self._axes = module, module.step_axes + 1  # of a sequence
        self.set_reset_value("state", None)

    @property
    def state(self) -> tuple[Tensor, ...] | None:
        """The memory: what ``module.state()`` gives, or None when it is cleared. It can be set."""
        at_rest = all(record.at_rest for record in records(self.module).values())
        return None if at_rest else self.module.state()

    @state.setter
    def state(self, value: tuple[Tensor, ...] | None) -> None:
        self.reset() if value is None else self.module.load_state(value)

    @property
    def _memories(self) -> dict[str, Any]:
        """Where SpikingJelly looks for memories, also to keep and to put back all at once."""
        return {"state": self.state}

    @_memories.setter
    def _memories(self, values: dict[str, Any]) -> None:
        for value in values.values():  # of which the base's constructor has none
            self.state = value

    def reset(self) -> None:
        """Clears the state of the module."""
        self.module.clear()

    def detach(self) -> None:
        """Truncates backpropagation here: the state keeps its values and drops its graph."""
        self.module.detach_state()

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Runs a step, in step mode "s".

        Args:
            x: input ``[B, ...]`` of the module.

        Returns:
            What the module gives.

        Raises:
            TypeError, ValueError: the input does not fit, or is a sequence.
        """
        if is_sequence(x, self._axes):
            raise checks.misshapen("x", x, 'no axis of time in step_mode "s"')
        return self.module(x)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Runs a sequence, in step mode "m".

        Args:
            x_seq: input ``[T, B, ...]`` of the module.

        Returns:
            ``[T, B, ...]``, what ``scan`` of the module gives.

        Raises:
            TypeError, ValueError: the input does not fit.
        """
        return self.module.scan(x_seq)


def adapt(module: Module) -> Memory:
    """A ``MemoryModule`` that holds a synapse, a delayed layer or a ``Delay``, in step mode "s".

    Args:
        module: the module of tritonsyn, with time first; it stays the same object, kept as
            ``module``.

    Returns:
        The adapter.

    Raises:
        TypeError, ValueError: the module is of another kind, or has ``batch_first=True``.
    """
    return Memory(accepted(module, batch_first=False))
