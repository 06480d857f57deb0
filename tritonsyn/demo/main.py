"""``tritonsyn demo``: trains, tests, compares, and leaves figures and a picture."""

import json
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..system import package_version, write_whole
from . import data, picture
from .network import HIDDEN
from .train import Run, train

_PACKAGES = ("tritonsyn", "torch", "triton", "snntorch", "scikit-learn")
_EPOCH_SECONDS = 0.35  # on one core of an AMD EPYC, November 2026, with torch 2.13


def run(epochs: int, seed: int, device: torch.device, out: Path) -> dict[str, Any]:
    """Announces and trains both networks; writes ``metrics.json`` and ``demo.png`` into ``out``."""
    _announce(epochs, seed, device, out)
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: threads would wait for each other
    try:
        learned = train(epochs, seed, device, frozen=False)
        frozen = train(epochs, seed, device, frozen=True)
    finally:
        torch.set_num_threads(threads)
    metrics = _metrics(learned, frozen, seed, device, time.perf_counter() - started)
    write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    picture.draw(learned, frozen, data.load(seed)[1], out / "demo.png")
    percent = [round(100 * each.test_accuracy, 1) for each in (learned, frozen)]
    print(f"learned delays: {percent[0]}% of the held-out digits")
    gain = percent[0] - percent[1]
    print(f"delays frozen at zero: {percent[1]}%; delays are worth {gain:.1f} points")
    print(f"wrote {out / 'metrics.json'} and {out / 'demo.png'}")
    return metrics


def _announce(epochs: int, seed: int, device: torch.device, out: Path) -> None:
    training, test = (len(digits.labels) for digits in data.load(seed))
    passes = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    print(f"Trains a network of {HIDDEN} spiking neurons on {training} scanned digits ({device}),")
    print("once with learned delays, once with all delays kept at zero.")
    print(f"Each training takes {passes}; {test} other digits test it after every one.")
    if device.type == "cpu":
        print(f"One CPU core takes about {2 * epochs * _EPOCH_SECONDS:.0f} s to train both.")
    print(f"Results go to {out}/.\n", flush=True)


def _metrics(
    learned: Run, frozen: Run, seed: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "test_accuracy": learned.test_accuracy,
        "frozen_test_accuracy": frozen.test_accuracy,
        "accuracy_per_epoch": learned.accuracy,
        "frozen_accuracy_per_epoch": frozen.accuracy,
        "loss_per_epoch": learned.loss,
        "epochs": len(learned.accuracy),
        "seed": seed,
        "seconds": {"total": seconds, "learned": learned.seconds, "frozen": frozen.seconds},
        "device": str(device),
        "device_name": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{package: package_version(package) for package in _PACKAGES},
        },
    }
