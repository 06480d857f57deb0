"""``tritonsyn info``: versions, devices, backends, caches."""

import argparse
import json
import os
import platform
from typing import Any

import torch

from .. import __version__, backend
from ..launch import tables
from ..system import package_version


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, backends, caches",
        description="Tells what is installed, which backend runs where, and where caches lie.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    found = facts()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for topic, entries in found.items():
        print(topic)
        for name, value in entries.items():
            print(f"  {name:<20} {'not set' if value is None else value}")


def facts() -> dict[str, dict[str, Any]]:
    # A driver may count GPUs that it cannot start.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(count)}
    return {
        "versions": {
            "tritonsyn": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": package_version("triton"),
            "numpy": package_version("numpy"),
        },
        "devices": {"cpu": platform.processor() or platform.machine(), **gpus},
        "backend": {
            "default": backend.get_backend(),
            "cpu": _runs("cpu"),
            "cuda": _runs("cuda") if gpus else "no CUDA device on this machine",
        },
        "caches": {"compiled kernels": _triton_cache(), "launch settings": str(tables.folder())},
        "environment": {
            name: os.environ.get(name)
            for name in (backend.VARIABLE, tables.VARIABLE, "TRITON_INTERPRET", "TRITON_CACHE_DIR")
        },
    }


def _runs(device: str) -> str:
    """Which backend runs on a device, and why."""
    return "{}: {}".format(*backend.explain(torch.device(device)))


def _triton_cache() -> str | None:
    """Where Triton keeps compiled kernels; None where it is not installed or does not say."""
    try:
        from triton import knobs
    except ImportError:
        return None
    return str(knobs.cache.dir)
