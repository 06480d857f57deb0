"""``tritonsyn demo``: trains a network of delayed synapses on scanned digits."""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from .common import UserError

NEEDS = {
    "snntorch": "snntorch",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
}

DESCRIPTION = """\
Trains a small spiking network to read scanned digits, twice: once with a learned
delay on every connection, once with all delays kept at zero.

The network sees a digit as spikes, one row of pixels every 3 ms, and answers in the
4 ms after the last row. Its neurons forget within a few ms. What an early row said
can only arrive in time for the answer if a delay holds it back: the difference
between the two accuracies is what delays are worth.

It takes about 20 s on one CPU core and downloads nothing. It writes
  metrics.json  accuracies and losses of each epoch, times, versions
  demo.png      a digit, its spikes and currents, the delays before and after training
"""

EXAMPLES = """\
examples:
  tritonsyn demo                      both trainings, results in demo-out/
  tritonsyn demo --epochs 3           a first impression in a few seconds
  tritonsyn demo --seed 1             other weights, delays and held-out digits
  tritonsyn demo --device cuda        on a GPU, by the Triton kernels

The network is in tritonsyn/demo/network.py, its training in tritonsyn/demo/train.py.
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Text as it is written, and options with their defaults."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a network of delayed synapses on scanned digits",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=_Help,
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training digits")
    parser.add_argument(
        "--seed", type=int, default=0, help="of all random numbers; the same seed, the same result"
    )
    parser.add_argument(
        "--device", default="cpu", help="torch device to train on: cpu, cuda, cuda:1"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.epochs < 1:
        raise UserError(f"--epochs must be at least 1, but is {arguments.epochs}")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be in 0 to 2**32 - 1, but is {arguments.seed}")
    missing = [name for module, name in NEEDS.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'tritonsyn[demo]'")
    device = _device(arguments.device)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be made: {error.strerror}") from None
    if not os.access(arguments.out, os.W_OK):
        raise UserError(f"--out {arguments.out} cannot be written to")

    print("Loading snnTorch and the digits, which takes some seconds ...", flush=True)
    from ..demo.main import run as train

    train(arguments.epochs, arguments.seed, device, arguments.out)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or one like cuda:1, but is {name}")
    return device
