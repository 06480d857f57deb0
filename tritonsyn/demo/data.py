"""Scanned digits, and the spikes that a row-by-row scan of them gives."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

STEP_TIME = 1.0
"""Length of a step, ms."""
ROWS = COLUMNS = 8
"""Size of an image, pixels."""
ROW_STEPS = 3
"""Steps for which a row is seen."""
ANSWER_STEPS = 4
"""Steps after the last row, without input, in which the answer is read."""
SCAN_STEPS = ROWS * ROW_STEPS
"""Steps for which the image is seen."""
STEPS = SCAN_STEPS + ANSWER_STEPS
"""Steps of a whole presentation, ``T``."""
AXONS = 2
"""Input lines of each column."""
INPUTS = COLUMNS * AXONS
"""Input lines, ``I``."""
CLASSES = 10
"""Digits to tell apart."""
HELD_OUT = 0.25
"""Part of the images that is only tested on."""


class Digits(NamedTuple):
    """Images and what they show."""

    images: torch.Tensor
    """Ink of each pixel, ``[N, rows, columns]``, 0 to 1."""
    labels: torch.Tensor
    """Digits ``[N]``, 0 to 9."""


def load(seed: int, samples: int | None = None) -> tuple[Digits, Digits]:
    """The digits for training and, a held-out quarter with the same share of each, for testing.

    ``samples`` takes so many images in all; None takes all 1,797 that scikit-learn ships.
    """
    bunch = load_digits()
    images = torch.as_tensor(bunch.images[:samples] / bunch.images.max(), dtype=torch.float32)
    labels = torch.as_tensor(bunch.target[:samples], dtype=torch.long)
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=seed
    )
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def encode(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    r"""Spikes of images that are scanned row by row: ``[N, rows, columns]`` to ``[T, N, I]``.

    While its row is seen, a pixel of ink :math:`p` drives the axons of its column at :math:`p`
    spikes a step, evenly spaced. Step :math:`k` of a row brings

    .. math:: x_a[k] = \lfloor p\,(k+1) + \phi_a \rfloor - \lfloor p\,k + \phi_a \rfloor

    with a phase :math:`\phi` drawn for each pixel; the axons of a column fire in turns, their
    phases :math:`1 / \text{AXONS}` apart. After the last row the lines are silent. Line
    ``a * columns + c`` is axon ``a`` of column ``c``.
    """
    count = len(images)
    ink = images.unsqueeze(2)
    phase = torch.rand(count, ROWS, 1, COLUMNS, generator=generator)
    edges = ink * torch.arange(ROW_STEPS + 1).view(1, 1, -1, 1)
    lines = [
        torch.floor(edges + (phase + axon / AXONS) % 1.0).diff(dim=2) for axon in range(AXONS)
    ]
    spikes = torch.zeros(STEPS, count, INPUTS)
    spikes[:SCAN_STEPS] = torch.cat(lines, dim=-1).reshape(count, SCAN_STEPS, INPUTS).transpose(0, 1)
    return spikes
