"""A network whose memory is its delays: two delayed dense layers and spiking neurons."""

from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import nn

from ..modules.synapse import DoubleExponentialCurrent, SingleExponentialCurrent
from .data import INPUTS, QUIET_STEPS, STEP_TIME

HIDDEN = 128
CLASSES = 10
CHARGE = 7.0
"""Charge of a spike, pC."""


class DelayedDense(nn.Module):
    """A dense layer with a learned delay on every connection.

    ``y[t, b, o] = bias[o] + sum_i weight[o, i] * I_i(t - delay[i, o])``, where ``I`` are the
    currents (nA) of a group of synapses. ``delay [1, in, out]`` is in ms.
    """

    def __init__(
        self, synapse: SingleExponentialCurrent | DoubleExponentialCurrent, outputs: int,
        weight_scale: float, frozen: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        inputs = synapse.count
        self.synapse = synapse
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * weight_scale / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        # Drawn also where frozen, so that both networks start from the same weights.
        delay = torch.rand(1, inputs, outputs) * synapse.delay
        self.delay = nn.Parameter(
            torch.zeros_like(delay) if frozen else delay, requires_grad=not frozen
        )

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Spikes ``[T, B, in]`` to inputs of the next neurons ``[T - first, B, out]``, nA."""
        synapse = self.synapse
        synapse.clear()
        if synapse.batchsz != x.shape[1]:
            synapse.batchsz = x.shape[1]
        if first:
            synapse.scan(x[:first])
        _, delayed = synapse.scan_at(x[first:], self.delay)
        return torch.einsum("tbio,oi->tbo", delayed, self.weight) + self.bias

    @torch.no_grad()
    def clamp_delays(self) -> None:
        """Brings every delay back to between 0 and the longest that the synapse keeps."""
        self.delay.clamp_(0.0, self.synapse.delay)


class Network(nn.Module):
    """Single-exponential synapses, leaky spiking neurons, double-exponential synapses, readout.

    The classes' membranes are read in the quiet steps after the last row only: what an early row
    said must have waited somewhere, in a delay or in the slow tail of a current.
    """

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        fast = SingleExponentialCurrent(
            INPUTS, STEP_TIME, spike_charge=CHARGE, time_constant=1.7, delay=26.0
        )
        slow = DoubleExponentialCurrent(
            HIDDEN, STEP_TIME, spike_charge=CHARGE, tc_decay=4.0, tc_rise=1.0, delay=20.0
        )
        self.hidden = DelayedDense(fast, HIDDEN, weight_scale=0.6, frozen=frozen)
        self.readout = DelayedDense(slow, CLASSES, weight_scale=0.1, frozen=frozen)
        self.neurons = snntorch.Leaky(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=10))
        self.classes = snntorch.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes ``[T, B, 16]`` to the classes' mean membrane in the quiet steps, ``[B, 10]``."""
        currents = self.readout(self.hidden_spikes(x), first=len(x) - QUIET_STEPS)
        return _run(self.classes, currents)[1].mean(0)

    def hidden_spikes(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of the hidden neurons, ``[T, B, 128]``."""
        return _run(self.neurons, self.hidden(x))[0]

    def layers(self) -> tuple[DelayedDense, DelayedDense]:
        """The delayed layers, first to last."""
        return self.hidden, self.readout


def _run(neurons: Any, currents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and membranes ``[T, B, n]`` of snnTorch neurons that receive these currents."""
    membrane = neurons.init_leaky()
    steps = []
    for current in currents:
        spike, membrane = neurons(current, membrane)
        steps.append((spike, membrane))
    spikes, membranes = zip(*steps, strict=True)
    return torch.stack(spikes), torch.stack(membranes)
