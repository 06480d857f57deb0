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


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a network of delayed synapses on scanned digits",
        description="Trains a spiking network that reads 1,797 scanned digits row by row, with "
        "learned delays and with delays frozen at zero; writes metrics.json and demo.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training digits")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same figure")
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
