"""inferno: an ``InfernoSynapse``, for code that asks for one or adds records to it.

Connections, layers and trainers of inferno take the synapses of tritonsyn without an adapter.
"""

from typing import Any

from inferno.neural.base import InfernoSynapse
from inferno.neural.mixins import BatchMixin, DelayedMixin
from torch import Tensor

from .. import checks
from ..modules.synapse import ExponentialCurrent
from .common import accepted


def _held(name: str, added: Any = None) -> Any:
    """What the held synapse has of this name; ``added`` is that of records added to the adapter."""

    def change(adapter: Any, value: Any) -> None:
        setattr(adapter.module, name, value)
        if added is not None:
            added.fset(adapter, value)

    return property(lambda adapter: getattr(adapter.module, name), change)


class Synapse(InfernoSynapse):
    """A synapse of tritonsyn as one of inferno; made by :func:`adapt`, held as ``module``."""

    batchsz = _held("batchsz", BatchMixin.batchsz)
    dt, delay = _held("dt", DelayedMixin.dt), _held("delay", DelayedMixin.delay)
    current, spike, inplace = _held("current"), _held("spike"), _held("inplace")
    current_at, spike_at, clear = _held("current_at"), _held("spike_at"), _held("clear")

    def add_batched(self, *attr: str) -> None:
        self._follow()
        super().add_batched(*attr)

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Tensor:
        current = self.module(*inputs, **kwargs)
        self._follow()
        return current

    def _follow(self) -> None:
        """Makes the batch of what was added that of the synapse: of its input or a saved state."""
        BatchMixin.batchsz.fset(self, self.module.batchsz)


def adapt(module: ExponentialCurrent) -> Synapse:
    """A synapse of inferno that holds one of tritonsyn, with ``add_delayed`` and ``add_batched``.

    Raises:
        TypeError: the module is of another kind. inferno's connections have delays themselves.
    """
    if not isinstance(accepted(module), ExponentialCurrent):
        raise TypeError(f"module must be a synapse for inferno, but is {checks.shown(module)}")
    made = Synapse(module.shape, module.dt, module.delay, module.batchsz, module.inplace)
    made.module = module
    return made
