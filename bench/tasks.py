"""The networks that are trained, and what they learn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from delays import Connections, Layer, Synapse
from neurons import Neurons
from torch import Tensor, nn

from tritonsyn.demo import data as rows

Provider = Callable[[Connections], Layer]


class Examples(NamedTuple):
    """What is learned from, or tested on."""

    x: Tensor
    """The examples, along the first axis."""
    labels: Tensor
    lengths: Tensor | None = None
    """How many steps each has, where that differs."""

    def at(self, places: Tensor | slice) -> "Examples":
        """Those at some places."""
        return Examples(*(part if part is None else part[places] for part in self))


# -- networks -------------------------------------------------------------------------------------


def drawn(size: tuple[int, int], scale: float, longest: int, synapse: Synapse) -> Connections:
    """Weights and delays ``[out, in]`` at random, the latter uniform up to the longest."""
    weight = torch.randn(size) * scale / size[1] ** 0.5
    return Connections(weight, torch.rand(size) * longest, longest, synapse)


class Network(nn.Module):
    """A network with delayed layers, from one provider."""

    layers: nn.ModuleList
    """The delayed ones."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Inputs ``[T, B, in]`` to scores of the classes, ``[B, classes]``."""
        raise NotImplementedError


class TwoLayers(Network):
    """Delayed layers to hidden neurons and to the classes, whose mean output counts.

    It is the mean over all steps of an example where these differ, else over the last few.
    """

    def __init__(
        self, provider: Provider, hidden: Connections, readout: Connections, neurons: Neurons
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList((provider(hidden), provider(readout)))
        self.neurons = neurons

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        hidden, readout = self.layers
        y = readout.sequence(self.neurons.run(hidden.sequence(x, lengths)), lengths)
        return y[-rows.QUIET_STEPS :].mean(0) if lengths is None else y.sum(0) / lengths[:, None]


class OnePixel(Network):
    """Neurons that see one pixel in each step; the spikes of the last step are read.

    The delayed connections go from these neurons to themselves, or to as many of a second layer.
    """

    neurons = Neurons(0.6, 2.0)

    def __init__(self, provider: Provider, connections: Connections, recurrent: bool) -> None:
        super().__init__()
        count = len(connections.weight)
        self.inputs, self.readout = nn.Linear(1, count), nn.Linear(count, 10)
        nn.init.normal_(self.inputs.weight, std=2.0)
        self.layers = nn.ModuleList((provider(connections),))
        self.recurrent = recurrent

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        (layer,), currents = self.layers, self.inputs(x)
        if self.recurrent:
            with layer.steps(len(x)) as step:
                spikes = self.neurons.run(currents, step)
        else:
            spikes = self.neurons.run(layer.sequence(self.neurons.run(currents)))
        return self.readout(spikes[-1])


def row_network(provider: Provider, delayed: bool) -> Network:
    """128 hidden neurons, as those of ``tritonsyn demo``."""
    fast, slow = Synapse(7.0, (1.7,)), Synapse(7.0, (4.0, 1.0))
    return TwoLayers(
        provider,
        drawn((128, rows.INPUTS), 0.6, 26 * delayed, fast),
        drawn((10, 128), 0.1, 20 * delayed, slow),
        Neurons(0.5, 10.0),
    )


def pixel_network(provider: Provider, delayed: bool, longest: int, recurrent: bool) -> Network:
    """64 neurons, as those of ``docs/examples/digits.py``, or 64 and 64."""
    fast = Synapse(2.5, (1.0, 0.5))
    return OnePixel(provider, drawn((64, 64), 0.5, longest * delayed, fast), recurrent)


def vowel_network(provider: Provider, delayed: bool) -> Network:
    """128 hidden neurons."""
    fast = Synapse(1.0, (1.0,))
    return TwoLayers(
        provider,
        drawn((128, 12), 0.5, 4 * delayed, fast),
        drawn((9, 128), 0.5, 4 * delayed, fast),
        Neurons(0.5, 5.0),
    )


# -- data -----------------------------------------------------------------------------------------

PAUSE = 16
"""Steps after the last pixel."""


def row_examples(seed: int) -> tuple[Examples, Examples]:
    """Scanned digits ``[n, 8, 8]`` to learn from and to test on."""
    learn, test = rows.load(seed)
    return Examples(*learn), Examples(*test)


def pixel_examples(seed: int) -> tuple[Examples, Examples]:
    """The same digits as pixels and a pause, ``[n, 64 + 16, 1]``."""
    learn, test = (
        Examples(nn.functional.pad(x.flatten(1), (0, PAUSE)).unsqueeze(2), labels)
        for x, labels, _ in row_examples(seed)
    )
    return learn, test


def vowel_examples(seed: int) -> tuple[Examples, Examples]:
    """Nine speakers' Japanese vowels: 12 coefficients in 7 to 29 steps, filled up ``[n, 29, 12]``.

    The division into 270 and 370 comes with them, whatever the seed is.
    """
    from aeon.datasets import load_japanese_vowels

    parts = {split: load_japanese_vowels(split=split) for split in ("train", "test")}
    frames = torch.cat([torch.tensor(x) for x in parts["train"][0]], 1)
    mean, deviation = frames.mean(1), frames.std(1)
    found = []
    for recordings, speakers in parts.values():
        steps = [((torch.tensor(x).t() - mean) / deviation).float() for x in recordings]
        labels = torch.tensor([int(speaker) - 1 for speaker in speakers])
        lengths = torch.tensor([len(x) for x in steps])
        found.append(Examples(nn.utils.rnn.pad_sequence(steps, True), labels, lengths))
    return found[0], found[1]


def time_first(x: Tensor, generator: torch.Generator) -> Tensor:
    """Sequences ``[n, T, in]`` as the networks take them."""
    return x.transpose(0, 1)


# -- tasks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A network and what it learns."""

    about: str
    network: Callable[[Provider, bool], Network]
    """Made by a provider, with delays or without."""
    examples: Callable[[int], tuple[Examples, Examples]]
    """Of a seed, to learn from and to test on."""
    epochs: int
    batch: int
    rate: float
    """Of learning."""
    delay_rate: float
    encode: Callable[[Tensor, torch.Generator], Tensor] = time_first
    """Inputs ``[T, B, in]`` of a batch of examples."""
    providers: tuple[str, ...] = ("tritonsyn", "DCLS", "loop")
    """Those that can do it."""


_LOOPS = ("tritonsyn", "loop")
TASKS: dict[str, Task] = {
    "rows": Task(
        "digits, one row for every 3 ms, as spikes", row_network, row_examples,
        epochs=10, batch=64, rate=0.015, delay_rate=0.1, encode=rows.encode,
    ),
    "pixels": Task(
        "digits, one pixel for every ms, to neurons that hear each other",
        partial(pixel_network, longest=32, recurrent=True), pixel_examples,
        epochs=10, batch=32, rate=0.01, delay_rate=0.2, providers=_LOOPS,
    ),
    "pixels-feedforward": Task(
        "the same to two layers of neurons, with delays as long as the digit",
        partial(pixel_network, longest=80, recurrent=False), pixel_examples,
        epochs=10, batch=32, rate=0.01, delay_rate=0.2,
    ),
    "vowels": Task(
        "Japanese vowels, 12 coefficients as input, to tell nine speakers", vowel_network,
        vowel_examples, epochs=30, batch=30, rate=0.01, delay_rate=0.1,
    ),
}  # fmt: skip
