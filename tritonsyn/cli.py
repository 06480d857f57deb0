"""The command line: ``tritonsyn info`` and ``tritonsyn demo``."""

import argparse
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

_DEMO_NEEDS = {
    "snntorch": "snntorch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm",
}  # fmt: skip


class UserError(Exception):
    """Something the user can mend; told in one line."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 well, 2 for what the user can mend."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"tritonsyn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntritonsyn: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tritonsyn",
        description="Exponential current synapses for PyTorch, on Triton kernels.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_info(commands)
    _add_demo(commands)
    return parser


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, backends, caches",
        description="Tells what is installed, which backend runs where, and where caches lie.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_info)


def _add_demo(commands: Any) -> None:
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
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.epochs < 1:
        raise UserError(f"--epochs must be at least 1, but is {arguments.epochs}")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be in 0 to 2**32 - 1, but is {arguments.seed}")
    missing = [name for module, name in _DEMO_NEEDS.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'tritonsyn[demo]'")
    device = _device(arguments.device)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be made: {error.strerror}") from None
    if not os.access(arguments.out, os.W_OK):
        raise UserError(f"--out {arguments.out} cannot be written to")

    from .demo.main import run

    run(arguments.epochs, arguments.seed, device, arguments.out)


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from None
    return device


def _info(arguments: argparse.Namespace) -> None:
    facts = _facts()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for topic, entries in facts.items():
        print(topic)
        for name, value in entries.items():
            print(f"  {name:<20} {value}")


def _facts() -> dict[str, dict[str, Any]]:
    import torch

    from . import __version__, backend

    cuda = torch.cuda.is_available()
    devices: dict[str, Any] = {"cpu": platform.processor() or platform.machine()}
    if cuda:
        for index in range(torch.cuda.device_count()):
            devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    backends: dict[str, Any] = {}
    for name in ("cpu", "cuda"):
        if name == "cuda" and not cuda:
            backends[name] = "no CUDA device on this machine"
            continue
        chosen, reason = backend.explain(torch.device(name))
        backends[name] = f"{chosen}: {reason}"
    return {
        "versions": {
            "tritonsyn": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
        },
        "devices": devices,
        "backend": {"default": backend.get_backend(), **backends},
        "caches": {"compiled kernels": _triton_cache()},
        "environment": {
            name: os.environ.get(name)
            for name in (backend.VARIABLE, "TRITON_INTERPRET", "TRITON_CACHE_DIR")
        },
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _triton_cache() -> str:
    """Where Triton keeps compiled kernels."""
    home = os.environ.get("TRITON_HOME", str(Path.home()))
    return os.environ.get("TRITON_CACHE_DIR", str(Path(home) / ".triton" / "cache"))
