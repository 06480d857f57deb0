"""The network: delayed dense layers of both synapses, with snnTorch's neurons between them."""

import math

import torch
from snntorch import Leaky, surrogate
from torch import nn

from tritonsyn import DoubleExponentialCurrent, SingleExponentialCurrent

from .data import CLASSES, INPUTS, SCAN_STEPS, STEP_TIME

Synapse = SingleExponentialCurrent | DoubleExponentialCurrent

CHARGE = 7.0
"""Charge of a spike, pC."""
TIME_CONSTANT = 1.7
"""Of the single-exponential synapses, ms: much shorter than the scan of an image."""
TC_DECAY, TC_RISE = 4.0, 1.0
"""Of the double-exponential synapses, ms."""
MAX_DELAYS = (26.0, 20.0)
"""Longest delay of the first and the second layer, ms."""
FIRST_DELAYS = 0.2
"""Part of the longest delay that delays are drawn from before training."""
GAINS = (0.6, 0.1)
"""Standard deviation of the first weights of each layer, over that of unit-variance sums."""
DECAYS = (0.5, 0.9)
"""What the membranes of hidden neurons and of outputs keep from one step to the next."""
SLOPE = 10.0
"""Steepness of the surrogate gradient of a spike."""


class DelayedDense(nn.Module):
    r"""Every input reaches every output with a weight and a delay of its own.

    .. math:: y_o(t) = b_o + \sum_i w_{oi}\, I_i(t - d_{oi})

    The synapse turns the spikes of an input into one current :math:`I_i`, nA, which each output
    reads at its own time before the present.

    Args:
        synapse: a group of ``I`` synapses; its longest delay bounds the delays.
        outputs: number of outputs ``O``.
        gain: standard deviation of the weights, times ``sqrt(I)``.
        learn_delays: whether delays are drawn and learned; else all are zero and stay so. What
            else is drawn does not depend on it.
        generator: draws weights and delays.
    """

    def __init__(
        self,
        synapse: Synapse,
        outputs: int,
        *,
        gain: float,
        learn_delays: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        size = (outputs, synapse.count)
        weight = torch.randn(size, generator=generator) * gain / math.sqrt(synapse.count)
        delay = torch.rand(size, generator=generator) * FIRST_DELAYS * synapse.delay
        self.synapse = synapse
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.delay = nn.Parameter(
            delay if learn_delays else torch.zeros(size), requires_grad=learn_delays
        )

    def scan(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs ``[T, B, I]`` to outputs ``[T, B, O]``; goes on from the synapse's state."""
        _, delayed = self.synapse.scan_at(x, self.delay.t().unsqueeze(0))
        return (delayed * self.weight.t()).sum(-2) + self.bias

    @torch.no_grad()
    def bound_delays(self) -> None:
        """Puts delays that left ``[0, longest delay]`` back on its edge."""
        self.delay.clamp_(0.0, self.synapse.delay)


class Network(nn.Module):
    """Spikes of a scanned image to the evidence for each digit, read when the scan is over.

    Single-exponential synapses and their delays drive leaky neurons that spike;
    double-exponential synapses and theirs drive one leaky membrane per digit, which starts at rest
    when the last row has passed: only what synapses keep and delays bring back can reach it.

    Args:
        hidden: number of hidden neurons ``H``.
        learn_delays: as for :class:`DelayedDense`.
        seed: of the first weights and delays.
    """

    def __init__(self, hidden: int, *, learn_delays: bool, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = DelayedDense(
            SingleExponentialCurrent(
                INPUTS, STEP_TIME, spike_charge=CHARGE, time_constant=TIME_CONSTANT,
                delay=MAX_DELAYS[0],
            ),
            hidden, gain=GAINS[0], learn_delays=learn_delays, generator=generator,
        )  # fmt: skip
        self.second = DelayedDense(
            DoubleExponentialCurrent(
                hidden, STEP_TIME, spike_charge=CHARGE, tc_decay=TC_DECAY, tc_rise=TC_RISE,
                delay=MAX_DELAYS[1],
            ),
            CLASSES, gain=GAINS[1], learn_delays=learn_delays, generator=generator,
        )  # fmt: skip
        self.neurons = Leaky(beta=DECAYS[0], spike_grad=surrogate.fast_sigmoid(slope=SLOPE))
        self.outputs = Leaky(beta=DECAYS[1], reset_mechanism="none")

    @property
    def layers(self) -> tuple[DelayedDense, DelayedDense]:
        """Both layers, in order."""
        return self.first, self.second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes ``[T, B, I]`` to evidence ``[B, classes]``: the mean potential of the answer."""
        self.rest(x.shape[1])
        spikes = self.hidden_spikes(x)
        self.second.synapse.scan(spikes[:SCAN_STEPS])
        _, potentials = run_neurons(self.outputs, self.second.scan(spikes[SCAN_STEPS:]))
        return potentials.mean(0)

    def rest(self, batch_size: int) -> None:
        """Puts the synapses to rest, for batches of this size."""
        for layer in self.layers:
            if layer.synapse.batchsz != batch_size:
                layer.synapse.batchsz = batch_size
            layer.synapse.clear()

    def hidden_spikes(self, x: torch.Tensor) -> torch.Tensor:
        """Input spikes ``[T, B, I]`` to the hidden neurons' ``[T, B, H]``."""
        return run_neurons(self.neurons, self.first.scan(x))[0]

    def bound_delays(self) -> None:
        """Puts all delays back into their bounds."""
        for layer in self.layers:
            layer.bound_delays()


def run_neurons(neurons: Leaky, currents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and potentials ``[T, B, N]`` of neurons at rest that currents ``[T, B, N]`` drive."""
    potential = neurons.reset_mem()
    steps = []
    for current in currents:
        spikes, potential = neurons(current, potential)
        steps.append((spikes, potential))
    spikes, potentials = (torch.stack(each) for each in zip(*steps, strict=True))
    return spikes, potentials
