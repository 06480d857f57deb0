"""Scanned digits as spike trains, one image row after the other."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROWS = 8  # of an image
ROW_STEPS = 3  # for which each row is shown
QUIET_STEPS = 4  # after the last row, in which the network decides
COPIES = 2  # input neurons for each pixel of a row; their spikes fall at different phases
INPUTS = ROWS * COPIES
STEPS = ROWS * ROW_STEPS + QUIET_STEPS
STEP_TIME = 1.0  # ms
_TEST_SEED = 12345


class Digits(NamedTuple):
    """Images ``[n, 8, 8]`` in [0, 1] and their labels ``[n]``."""

    images: torch.Tensor
    labels: torch.Tensor


def load(seed: int) -> tuple[Digits, Digits]:
    """Three quarters of the 1,797 digits to train on and a quarter to test on, stratified."""
    bunch = load_digits()
    rows = np.arange(len(bunch.target))
    train, test = train_test_split(rows, test_size=0.25, stratify=bunch.target, random_state=seed)
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32)
    labels = torch.tensor(bunch.target)
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def encode(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Spike trains ``[T, n, 16]`` of images ``[n, 8, 8]``, one row for every 3 ms, then silence.

    A pixel of brightness q fires at rate q, evenly, from a random phase u: it spikes in step k
    of its row where ``floor(q * (k + 1) + u)`` passes ``floor(q * k + u)``.
    """
    count = len(images)
    brightness = images.unsqueeze(2)
    phase = torch.rand(count, ROWS, 1, images.shape[2], generator=generator)
    step = torch.arange(ROW_STEPS).view(1, 1, -1, 1)
    u = torch.cat([(phase + copy / COPIES) % 1.0 for copy in range(COPIES)], -1)
    rate = brightness.repeat(1, 1, 1, COPIES)
    spikes = (rate * (step + 1) + u).floor() - (rate * step + u).floor()
    spikes = spikes.reshape(count, ROWS * ROW_STEPS, INPUTS).transpose(0, 1)
    return torch.cat((spikes, torch.zeros(QUIET_STEPS, count, INPUTS)))


def encode_test(images: torch.Tensor) -> torch.Tensor:
    """The same trains at every call: an image of the test set always looks alike."""
    return encode(images, torch.Generator().manual_seed(_TEST_SEED))
