"""``tritonsyn configs``: which launch settings would be used, and how they differ."""

import argparse
import json
from typing import Any

import torch

from ..launch import tables
from ..launch.config import HEURISTICS, check_names, choose, from_dict, names
from ..workbench import Shape
from ..workbench.calls import CALLS, DTYPES
from ..workbench.inspect import TARGETS
from ..workbench.record import main_launch
from .common import USUAL_SHAPE, UserError, needs_triton, settings


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "configs",
        help="which launch settings would be used, and how they differ from the heuristics",
        description="Lists what each kernel would be launched with on a device, where that comes "
        "from (your cache, a table that tritonsyn brings along, or a heuristic), and what the "
        "heuristic would have said; then all entries of your cache for that device.",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="a GPU's name or an architecture such as sm_90 (default: this machine's GPU)",
    )
    parser.add_argument(
        "--shape",
        default=USUAL_SHAPE,
        metavar="TxBxN[xOxK]",
        help=f"steps, samples, synapses (default: {USUAL_SHAPE}); of projections outputs and slots",
    )
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--diff", action="store_true", help="only what differs from a heuristic")
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the settings."""
    needs_triton()
    try:
        shape = Shape.parse(arguments.shape)
        devices = _devices(arguments.device)
        rows = _chosen(shape, arguments.dtype, devices)
        cached = _cached(devices)
    except ValueError as error:
        raise UserError(str(error)) from None
    if arguments.diff:
        rows = [row for row in rows if row["config"] != row["heuristic"]]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{' / '.join(devices) or 'no GPU'}, shape {shape}, {arguments.dtype}")
    for row in rows:
        print(f"  {row['kernel']:<26} {settings(row['config']):<34} {row['origin']}")
        if row["config"] != row["heuristic"]:
            print(f"  {'':<26} {settings(row['heuristic']):<34} is what the heuristic says")
    if not rows:
        print("  all as the heuristics say")
    for key, words in cached.items():
        print(f"  cached: {key}: {words}")


def _devices(given: str | None) -> tuple[str, ...]:
    if not given:
        return names(torch.device("cuda", 0))
    if given not in TARGETS and not any(path.exists() for _, path in tables.tables((given,))):
        raise ValueError(
            f"nothing is tuned for the device {given!r} in {tables.folder()}, and it is not one of "
            f"the architectures {', '.join(TARGETS)}"
        )
    return (given,)


def _cached(devices: tuple[str, ...]) -> dict[str, str]:
    """The entries of the user's tables in words."""
    found = {}
    for device in reversed(devices):  # the first that has an entry counts
        path = tables.path(device)
        for key, entry in tables.read(path).items():
            config = from_dict(entry["config"], str(path)).as_dict()
            found[key] = f"{settings(config)} ({entry.get('timer', 'by hand')})"
    return found


def _chosen(shape: Shape, dtype: str, devices: tuple[str, ...]) -> list[dict[str, Any]]:
    check_names("dtype", [dtype], DTYPES)
    rows = []
    for kernel in (name for name, call in CALLS.items() if dtype in call.dtypes):
        launch = main_launch(kernel, shape, dtype)
        config, origin = choose(kernel, launch.work, launch.dtype, devices)
        heuristic = HEURISTICS[kernel](launch.work, launch.dtype).as_dict()
        place = {"kernel": kernel, "config": config.as_dict(), "origin": origin}
        rows.append({**place, "heuristic": heuristic})
    return rows
