"""The data and the layer of the examples with Lightning and accelerate."""

import torch
from torch.nn.functional import one_hot

from tritonsyn import DelayedLinear, SingleExponentialCurrent

STEPS, INPUTS, CLASSES, SAMPLES = 40, 12, 10, 200  # steps of 1 ms


def samples():
    """Spikes [n, T, N] and classes [n]: every input spikes once, about the time of the class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    times = torch.randint(STEPS, (CLASSES, INPUTS), generator=draw)[labels]
    times = times + 2.0 * torch.randn(SAMPLES, INPUTS, generator=draw)
    spikes = one_hot(times.round().long().clamp(0, STEPS - 1), STEPS).transpose(1, 2)
    return torch.utils.data.TensorDataset(spikes.float(), labels)


def layer():
    """A layer whose last outputs are scores of the classes, once delays let spikes meet there."""
    physics = SingleExponentialCurrent.partialconstructor(10.0, 3.0)
    how = {"delay": STEPS - 1.0, "spread": 4.0, "bias": True, "batch_first": True}
    return DelayedLinear(INPUTS, CLASSES, 1.0, synapse=physics, **how)
