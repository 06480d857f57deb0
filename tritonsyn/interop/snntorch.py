"""snnTorch: what resets and detaches the hidden states of a net reaches our state, too."""

from typing import Any
from weakref import WeakSet

from snntorch import SLSTM, Alpha, Lapicque, Leaky, RLeaky, RSynaptic, SConv2dLSTM, Synaptic
from torch import Tensor, nn

from .common import Module, accepted


# RLeaky first, because of its init_rleaky.
class _Hidden(RLeaky, Leaky, Lapicque, Synaptic, Alpha, RSynaptic, SConv2dLSTM, SLSTM):
    """All adapters, as one neuron of every kind in snnTorch's list, and as its hidden states."""

    __init__, device = nn.Module.__init__, None
    mem = syn = syn_exc = syn_inh = spk = property(lambda self: self)
    __torch_function__ = classmethod(lambda *_, **__: None)  # what torch.zeros_like makes of it

    def __setattr__(self, name: str, zeros: Any) -> None:
        for adapter in _ADAPTERS:
            adapter.reset_mem()

    def detach_(self) -> None:
        for adapter in _ADAPTERS:
            adapter.module.detach_state()


_ADAPTERS: "WeakSet[HiddenState]" = WeakSet()
_HIDDEN = _Hidden()


# snnTorch acts on kinds among a net's children; TBPTT on the last of them, and this is the first.
class HiddenState(Lapicque):
    """A module of tritonsyn in a net of snnTorch; made by :func:`adapt`.

    Args:
        module: the module of tritonsyn, kept as ``module``.
    """

    def __init__(self, module: Module) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)
        if isinstance(self.module, Module):  # and no program of tritonsyn.export
            _ADAPTERS.add(self)
        if _HIDDEN not in self.instances:
            self.instances.append(_HIDDEN)

    def reset_mem(self) -> None:
        """Clears the state of the module, as ``snntorch.utils.reset`` asks for it."""
        self.module.clear()

    def forward(self, x: Tensor) -> Tensor:
        """Runs a step, or a sequence, on from the present state.

        Args:
            x: input of the module, ``[B, ...]`` or ``[T, B, ...]``.

        Returns:
            What the module gives.

        Raises:
            TypeError, ValueError: the input does not fit.
        """
        return self.module(x)


def adapt(module: Module) -> HiddenState:
    """A module for nets of snnTorch that holds a synapse, a delayed layer or a ``Delay``.

    Args:
        module: the module of tritonsyn; it stays the same object, kept as ``module``.

    Returns:
        The adapter.

    Raises:
        TypeError: the module is of another kind.
    """
    return HiddenState(accepted(module))
