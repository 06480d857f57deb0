"""sinabs: a layer that ``reset_states`` puts to rest and whose state ``zero_grad`` detaches."""

from sinabs.layers import SqueezeMixin, StatefulLayer
from torch import Tensor, nn

from .. import checks
from .common import Module, accepted


class _State(StatefulLayer):
    """What the functions of sinabs find in a layer: they ask only modules without children."""

    # As of any other module; those of sinabs know plain arguments only.
    __deepcopy__, __repr__ = None, nn.Module.__repr__

    def __init__(self, module: Module) -> None:
        super().__init__([])
        self.__dict__["module"] = module  # which is the layer's child, not this one's

    def reset_states(self, randomize: bool = False, value_ranges: object = None) -> None:
        """Clears the state of the module.

        Args:
            randomize: False; a random state is refused.
            value_ranges: ignored.

        Raises:
            ValueError: ``randomize`` is True.
        """
        if randomize:
            raise ValueError("randomize must be False: this layer can only be put to rest")
        self.module.clear()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drops the gradients of the parameters and the graph of the state.

        Args:
            set_to_none: whether gradients become None instead of zeros.
        """
        self.module.zero_grad(set_to_none)
        self.module.detach_state()


class Layer(_State):
    """A module of tritonsyn as a layer of sinabs; made by :func:`adapt`.

    Args:
        module: the module of tritonsyn, kept as ``module``.
    """

    def __init__(self, module: Module) -> None:
        StatefulLayer.__init__(self, [])
        self.module, self.state = module, _State(module)

    def forward(self, x: Tensor) -> Tensor:
        """Runs a sequence on from the present state.

        Args:
            x: input ``[B, T, ...]`` of the module.

        Returns:
            ``[B, T, ...]``, what ``scan`` of the module gives.

        Raises:
            TypeError, ValueError: the input does not fit.
        """
        return self.module.scan(x)


class SqueezedLayer(Layer, SqueezeMixin):
    """The same with batch and time on one axis, ``[B * T, ...]``.

    Args:
        module: the module of tritonsyn, kept as ``module``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Runs a sequence on from the present state.

        Args:
            x: input ``[B * T, ...]`` of the module, all steps of a sample after each other.

        Returns:
            ``[B * T, ...]``, what ``scan`` of the module gives.

        Raises:
            TypeError, ValueError: the input does not fit.
        """
        return self.squeeze_forward(checks.check_real("x", x), super().forward)


def adapt(module: Module, **squeezed: int) -> Layer:
    """A layer that holds a synapse, a delayed layer or a ``Delay``.

    Args:
        module: the module of tritonsyn, with ``batch_first=True``; it stays the same object, kept
            as ``module``.
        squeezed: ``batch_size`` or ``num_timesteps``, with which the layer takes ``[B * T, ...]``,
            as others in sinabs do; none for ``[B, T, ...]``.

    Returns:
        The adapter, a :class:`SqueezedLayer` if it is squeezed.

    Raises:
        TypeError, ValueError: the module is of another kind, or has time first.
    """
    layer = (SqueezedLayer if squeezed else Layer)(accepted(module, batch_first=True))
    if squeezed:
        layer.squeeze_init(**{"batch_size": None, "num_timesteps": None, **squeezed})
    return layer
