"""A dense layer with a learned delay on every connection, from three providers.

Each is a module with the same methods, so that a network is written once. All start from the same
``Connections``, and have time constants that stay. What they differ in is how a current is read
between two steps, and how sums of delayed currents are computed:

* ``Tritonsyn``: the current as it decays between the steps;
* ``Loop``: on the line between the two steps, by one matrix product in each step;
* ``Convolution``: on the same line, by a convolution over time of the package DCLS.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tritonsyn import DelayedLinear, DoubleExponentialCurrent, SingleExponentialCurrent

Step = Callable[[Tensor], Tensor]


class Synapse(NamedTuple):
    """Exponential synapses: single with one time constant, double with two."""

    charge: float
    constants: tuple[float, ...]
    """In steps; of the decay first, then of the rise."""

    def decays(self) -> list[float]:
        """What is left of each component after a step."""
        return [math.exp(-1 / constant) for constant in self.constants]

    def gains(self) -> list[float]:
        """What a spike adds to each component; the current is their sum."""
        if len(self.constants) == 1:
            return [self.charge / self.constants[0]]
        gain = self.charge / (self.constants[0] - self.constants[1])
        return [gain, -gain]

    def steps(self) -> Step:
        """A function that takes the input of a step and gives its currents, from rest."""
        decays, gains = self.decays(), self.gains()
        parts: list[Tensor] = []

        def step(x: Tensor) -> Tensor:
            nonlocal parts
            entered = [gain * x for gain in gains]
            if parts:
                entered = [d * p + e for d, p, e in zip(decays, parts, entered, strict=True)]
            parts = entered
            return sum(parts[1:], parts[0])

        return step


class Connections(NamedTuple):
    """What a layer starts from."""

    weight: Tensor
    """``[out, in]``"""
    delay: Tensor
    """``[out, in]``, in steps."""
    longest: int
    """The longest delay that may be learned, in steps; an even number."""
    synapse: Synapse


class Tritonsyn(DelayedLinear):
    """The layer of tritonsyn. Where currents jump, delays learn from them smoothed over a step."""

    package = "tritonsyn"

    def __init__(self, start: Connections) -> None:
        charge, constants = start.synapse
        jumps = len(constants) == 1
        kind = SingleExponentialCurrent if jumps else DoubleExponentialCurrent
        outputs, inputs = start.weight.shape
        super().__init__(
            inputs, outputs, 1.0, delay=float(start.longest), bias=True,
            synapse=kind.partialconstructor(charge, *constants), spread=float(jumps),
            weight_init=lambda _: start.weight, delay_init=lambda _: start.delay,
            bias_init=nn.init.zeros_,
        )  # fmt: skip

    def sequence(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs ``[T, B, out]`` of a sequence ``[T, B, in]``, from rest; 0 after its length."""
        self.clear()
        return self.scan(x, lengths)

    @contextmanager
    def steps(self, count: int) -> Iterator[Step]:
        """A function that takes the input of a step and gives its outputs, from rest."""
        self.clear()
        with self.unrolled(count):
            yield self


class Loop(nn.Module):
    """What one would write by hand: the currents of the last steps, times one matrix."""

    package = "torch"

    def __init__(self, start: Connections) -> None:
        super().__init__()
        self.weight, self.delay = nn.Parameter(start.weight), nn.Parameter(start.delay)
        self.bias = nn.Parameter(torch.zeros(len(start.weight)))
        self.longest, self.synapse = start.longest, start.synapse

    def sequence(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As that of ``Tritonsyn``."""
        with self.steps(len(x)) as step:
            return silenced(torch.stack([step(row) for row in x]), lengths)

    @contextmanager
    def steps(self, count: int) -> Iterator[Step]:
        """As that of ``Tritonsyn``."""
        matrix, currents = self._matrix(), self.synapse.steps()
        past: list[Tensor] = []

        def step(x: Tensor) -> Tensor:
            nonlocal past
            now = currents(x)
            past = [now, *(past or [torch.zeros_like(now)] * (self.longest + 1))[:-1]]
            return torch.addmm(self.bias, torch.cat(past, 1), matrix)

        yield step

    def _matrix(self) -> Tensor:
        """``[K in, out]``: each weight on the two steps around its delay, the newest first."""
        newer = self.delay.detach().floor().clamp(max=max(self.longest - 1, 0))
        beyond = self.delay - newer
        steps = torch.stack((newer, (newer + 1).clamp(max=self.longest))).long()
        weights = torch.stack((self.weight * (1 - beyond), self.weight * beyond))
        taps = weights.new_zeros(self.longest + 1, *self.weight.shape)
        return taps.scatter_add(0, steps, weights).transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def clamp_delays_(self) -> None:
        """Brings delays back into their range."""
        self.delay.clamp_(0, self.longest)


class Convolution(nn.Module):
    """The temporal convolution of DCLS, of currents by a loop. It has no steps: no recurrence."""

    package = "DCLS"

    def __init__(self, start: Connections) -> None:
        from DCLS.construct.modules import Dcls1d

        super().__init__()
        outputs, inputs = start.weight.shape
        self.longest, self.synapse = start.longest, start.synapse
        self.convolution = Dcls1d(
            inputs, outputs, kernel_count=1, dilated_kernel_size=start.longest + 1, version="v1"
        )
        with torch.no_grad():
            self.convolution.weight.copy_(start.weight.unsqueeze(-1))
            self.convolution.bias.zero_()
            # Positions count from the middle of the kernel, of which the last tap is the present.
            self.delay.copy_((start.longest // 2 - start.delay).unsqueeze(-1))

    @property
    def delay(self) -> nn.Parameter:
        """Positions ``[1, out, in, 1]``: half of the longest delay, less the delay."""
        return self.convolution.P

    def sequence(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As that of ``Tritonsyn``."""
        step = self.synapse.steps()
        currents = torch.stack([step(row) for row in x], -1)  # [B, in, T]
        y = self.convolution(nn.functional.pad(currents, (self.longest, 0)))
        return silenced(y.permute(2, 0, 1), lengths)

    def clamp_delays_(self) -> None:
        """Brings delays back into their range."""
        self.convolution.clamp_parameters()


Layer = Tritonsyn | Convolution | Loop
PROVIDERS: dict[str, type[Layer]] = {
    "tritonsyn": Tritonsyn, "DCLS": Convolution, "loop": Loop,
}  # fmt: skip


def silenced(y: Tensor, lengths: Tensor | None) -> Tensor:
    """Outputs ``[T, B, out]`` with zeros after the length of each sample."""
    if lengths is None:
        return y
    return y * (torch.arange(len(y)).unsqueeze(1) < lengths).unsqueeze(2)
