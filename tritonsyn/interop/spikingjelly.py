"""SpikingJelly: a ``MemoryModule`` with step modes, for ``reset_net`` and ``detach_net``."""

from collections.abc import Iterator
from typing import Any

from spikingjelly.activation_based import base
from torch import Tensor

from .. import RecordTensor, checks
from .common import Module, accepted


class Memory(base.MemoryModule):
    """A module of tritonsyn, kept as ``module``, as one of SpikingJelly; made by :func:`adapt`."""

    module: Module

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module
        self._memories["state"] = self._memories_rv["state"] = None  # the property has the value

    @property
    def state(self) -> tuple[Tensor, ...] | None:
        """The memory: what ``module.state()`` gives, or None at rest. It can be set."""
        records = (part for part in self.module.modules() if isinstance(part, RecordTensor))
        return None if all(record.at_rest for record in records) else self.module.state()

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "state":
            super().__setattr__(name, value)
        elif value is None:
            self.reset()
        else:
            self.module.load_state(value)

    def named_memories(self) -> Iterator[tuple[str, Any]]:
        yield "state", self.state

    def memories(self) -> Iterator[Any]:
        yield self.state

    def reset(self) -> None:
        self.module.clear()

    def detach(self) -> None:
        self.module.detach_state()

    def single_step_forward(self, x: Tensor) -> Tensor:
        if getattr(x, "ndim", 0) > self.module.step_axes:
            raise checks.misshapen("x", x, 'no axis of time in step_mode "s"')
        return self.module(x)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        return self.module.scan(x_seq)


def adapt(module: Module) -> Memory:
    """A ``MemoryModule`` that holds a synapse, a delayed layer or a ``Delay``, in step mode "s"."""
    return Memory(accepted(module, batch_first=False))
