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
        if randomize:
            raise ValueError("randomize must be False: this layer can only be put to rest")
        self.module.clear()

    def zero_grad(self, set_to_none: bool = False) -> None:
        self.module.zero_grad(set_to_none)
        self.module.detach_state()


class Layer(_State):
    """A module of tritonsyn as a layer of sinabs; made by :func:`adapt`, held as ``module``."""

    def __init__(self, module: Module) -> None:
        StatefulLayer.__init__(self, [])
        self.module, self.state = module, _State(module)

    def forward(self, x: Tensor) -> Tensor:
        return self.module.scan(x)


class SqueezedLayer(Layer, SqueezeMixin):
    """The same with batch and time on one axis, ``[B * T, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze_forward(checks.check_real("x", x), super().forward)


def adapt(module: Module, **squeezed: int) -> Layer:
    """A layer that holds a synapse, a delayed layer or a ``Delay``, with ``batch_first=True``.

    With ``batch_size`` or ``num_timesteps`` it takes ``[B * T, ...]``, as others in sinabs do.

    Raises:
        TypeError, ValueError: the module is of another kind, or has time first.
    """
    layer = (SqueezedLayer if squeezed else Layer)(accepted(module, batch_first=True))
    if squeezed:
        layer.squeeze_init(**{"batch_size": None, "num_timesteps": None, **squeezed})
    return layer
