"""``tritonsyn configs``: which launch settings would be used, and how they differ."""

import argparse
import json
import sys
from typing import Any

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
    from ..workbench import Shape

    try:
        shape = Shape.parse(arguments.shape)
        devices = _devices(arguments.device)
        rows = _chosen(shape, arguments.dtype, devices)
        entries = _entries(devices)
    except ValueError as error:
        raise UserError(str(error)) from None
    if arguments.diff:
        rows = [row for row in rows if row["config"] != row["heuristic"]]
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
        return
    print(f"{' / '.join(devices) or 'no GPU'}, shape {shape}, {arguments.dtype}")
    for row in rows:
        print(f"  {row['kernel']:<26} {settings(row['config']):<34} {row['origin']}")
        if row["config"] != row["heuristic"]:
            print(f"  {'':<26} {settings(row['heuristic']):<34} is what the heuristic says")
    if not rows:
        print("  all as the heuristics say")
    for key, entry in entries.items():
        print(f"  cached: {key}: {settings(entry['config'])} ({entry['timer']})")


def _devices(given: str | None) -> tuple[str, ...]:
    import torch

    from ..launch import tables
    from ..launch.config import names
    from ..workbench.inspect import TARGETS

    if not given:
        return names(torch.device("cuda", 0))
    if given not in TARGETS and not tables.has_table(given):
        raise ValueError(
            f"nothing is tuned for the device {given!r} in {tables.folder()}, and it is not one of "
            f"the architectures {', '.join(TARGETS)}"
        )
    return (given,)


def _chosen(shape: Any, dtype: str, devices: tuple[str, ...]) -> list[dict[str, Any]]:
    from ..launch.config import HEURISTICS, choose
    from ..workbench.calls import CALLS, DTYPES
    from ..workbench.inspect import check_names
    from ..workbench.record import main_launch

    check_names("dtype", [dtype], DTYPES)
    rows = []
    for kernel in (name for name, call in CALLS.items() if dtype in call.dtypes):
        launch = main_launch(kernel, shape, dtype)
        config, origin = choose(kernel, launch.work, launch.dtype, devices)
        heuristic = HEURISTICS[kernel](launch.work, launch.dtype).as_dict()
        place = {"kernel": kernel, "config": config.as_dict(), "origin": origin}
        rows.append({**place, "heuristic": heuristic})
    return rows


def _entries(devices: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    from ..launch import tables

    return {key: e for device in devices for key, e in tables.read(tables.path(device)).items()}
