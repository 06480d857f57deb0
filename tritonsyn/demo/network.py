"""A network whose memory is its delays: two delayed dense layers and spiking neurons."""

from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import nn

from ..modules.linear import DelayedLinear
from ..modules.synapse import DoubleExponentialCurrent, SingleExponentialCurrent, SynapseConstructor
from .data import INPUTS, QUIET_STEPS, STEP_TIME

HIDDEN = 128
CLASSES = 10
CHARGE = 7.0  # of a spike, pC


class Network(nn.Module):
    """Single-exponential synapses, leaky spiking neurons, double-exponential synapses, readout.

    The classes' membranes are read in the quiet steps after the last row only: what an early row
    said must have waited somewhere, in a delay or in the slow tail of a current.
    """

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        fast = SingleExponentialCurrent.partialconstructor(CHARGE, 1.7)
        slow = DoubleExponentialCurrent.partialconstructor(CHARGE, 4.0, 1.0)
        self.hidden = _layer(INPUTS, HIDDEN, fast, delay=26.0, scale=0.6, frozen=frozen)
        self.readout = _layer(HIDDEN, CLASSES, slow, delay=20.0, scale=0.1, frozen=frozen)
        self.neurons = snntorch.Leaky(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=10))
        self.classes = snntorch.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes ``[T, B, 16]`` to the classes' mean membrane in the quiet steps, ``[B, 10]``."""
        spikes = self.hidden_spikes(x)
        quiet = len(x) - QUIET_STEPS
        self.readout.synapse.scan(spikes[:quiet])
        currents = self.readout.scan(spikes[quiet:])
        return _run(self.classes, currents)[1].mean(0)

    def hidden_spikes(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of the hidden neurons, ``[T, B, 128]``."""
        for layer in self.layers():
            layer.clear()
            if layer.batchsz != x.shape[1]:
                layer.batchsz = x.shape[1]
        return _run(self.neurons, self.hidden.scan(x))[0]

    def layers(self) -> tuple[DelayedLinear, DelayedLinear]:
        """The delayed layers, first to last."""
        return self.hidden, self.readout


def _layer(
    inputs: int, outputs: int, synapse: SynapseConstructor, delay: float, scale: float, frozen: bool
) -> DelayedLinear:
    """A delayed dense layer; its delays are learned, or ``frozen`` at zero."""

    layer = DelayedLinear(
        inputs,
        outputs,
        STEP_TIME,
        synapse=synapse,
        delay=delay,
        bias=True,
        weight_init=lambda tensor: tensor.normal_(0.0, scale / inputs**0.5),
        bias_init=nn.init.zeros_,
        delay_init=lambda tensor: tensor.uniform_(0.0, delay),
    )
    if frozen:  # after its delays were drawn, so that both networks start from the same weights
        layer.delay.requires_grad_(False).zero_()
    return layer


def _run(neurons: Any, currents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and membranes ``[T, B, n]`` of snnTorch neurons that receive these currents."""
    membrane = neurons.init_leaky()
    steps = []
    for current in currents:
        spike, membrane = neurons(current, membrane)
        steps.append((spike, membrane))
    spikes, membranes = zip(*steps, strict=True)
    return torch.stack(spikes), torch.stack(membranes)
