"""snnTorch: what resets and detaches the hidden states of a net reaches our state, too."""

from typing import Any
from weakref import WeakSet

import snntorch as snn
from torch import Tensor, nn

from .common import Module, accepted


class _Hidden(
    snn.RLeaky, snn.Leaky, snn.Lapicque, snn.Synaptic, snn.Alpha, snn.RSynaptic, snn.SConv2dLSTM,
    snn.SLSTM,
):  # fmt: skip
    """All adapters, as one neuron of every kind in snnTorch's list, and as its hidden states."""

    __init__, device = nn.Module.__init__, None
    mem = syn = syn_exc = syn_inh = spk = property(lambda self: self)

    def __setattr__(self, name: str, zeros: Any) -> None:
        for adapter in _ADAPTERS:
            adapter.module.clear()

    def detach_(self) -> None:
        for adapter in _ADAPTERS:
            adapter.module.detach_state()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> None:
        """What ``torch.zeros_like`` makes of it."""


_ADAPTERS: "WeakSet[HiddenState]" = WeakSet()
_HIDDEN = _Hidden()


# snnTorch resets and detaches the kinds that are children of a net. Lapicque, because in TBPTT it
# detaches the last kind only, and this is the first.
class HiddenState(snn.Lapicque):
    """A module of tritonsyn, kept as ``module``, in a net of snnTorch; made by :func:`adapt`."""

    def __init__(self, module: Module) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)
        _ADAPTERS.add(self)
        if _HIDDEN not in snn.SpikingNeuron.instances:
            snn.SpikingNeuron.instances.append(_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def adapt(module: Module) -> HiddenState:
    """A module for nets of snnTorch that holds a synapse, a delayed layer or a ``Delay``."""
    return HiddenState(accepted(module))
