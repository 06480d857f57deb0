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

    doc = f"As of the held synapse: ``{name}``."
    return property(lambda adapter: getattr(adapter.module, name), change, doc=doc)


class Synapse(InfernoSynapse):
    """A synapse of tritonsyn as one of inferno; made by :func:`adapt`.

    Its ``batchsz``, ``dt``, ``delay``, ``current``, ``spike``, ``inplace``, ``current_at``,
    ``spike_at`` and ``clear`` are those of the held synapse.

    Attributes:
        module: the synapse of tritonsyn.
    """

    batchsz = _held("batchsz", BatchMixin.batchsz)
    dt, delay = _held("dt", DelayedMixin.dt), _held("delay", DelayedMixin.delay)
    current, spike, inplace = _held("current"), _held("spike"), _held("inplace")
    current_at, spike_at, clear = _held("current_at"), _held("spike_at"), _held("clear")

    def add_batched(self, *attr: str) -> None:
        """Has attributes of the adapter resized with the batch, as inferno's method does.

        Args:
            attr: names of attributes.
        """
        self._follow()
        super().add_batched(*attr)

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Tensor:
        """Advances the held synapse, as its ``forward`` does.

        Args:
            inputs: the input ``[B, *shape]``.
            kwargs: for the ``forward`` of the held synapse.

        Returns:
            The present current ``[B, *shape]``, nA.
        """
        current = self.module(*inputs, **kwargs)
        self._follow()
        return current

    def _follow(self) -> None:
        """Makes the batch of what was added that of the synapse: of its input or a saved state."""
        BatchMixin.batchsz.fset(self, self.module.batchsz)


def adapt(module: ExponentialCurrent) -> Synapse:
    """A synapse of inferno that holds one of tritonsyn, with ``add_delayed`` and ``add_batched``.

    Args:
        module: a synapse of tritonsyn; it stays the same object, kept as ``module``.

    Returns:
        The adapter.

    Raises:
        TypeError: the module is of another kind. inferno's connections have delays themselves.
    """
    if not isinstance(accepted(module), ExponentialCurrent):
        raise TypeError(f"module must be a synapse for inferno, but is {checks.shown(module)}")
    made = Synapse(module.shape, module.dt, module.delay, module.batchsz, module.inplace)
    made.module = module
    return made
