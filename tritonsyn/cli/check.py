"""``tritonsyn check``: compiles every kernel, without a GPU, and tells what came out."""

import argparse
import json
from functools import partial
from typing import Any

from ..workbench import inspect
from ..workbench.workers import CompileError
from .common import SEVERAL, UserError, bar, needs_triton, settings

_EPILOG = """\
Each line is one variant of a kernel (element types of its streams) on one target:

  registers, spills    per thread; spills are bytes in local memory, and ought to be 0
  shared               bytes of shared memory per program
  loads, stores        global memory instructions in the PTX, by width in bits x count
  bytes                per element of the kernel's streams: what the code moves / what
                       the kernel cannot do without, as its docstring counts
  occupancy            part of a multiprocessor's warps that can be resident at once

The status is 1 if something is not as it should be: a spill, an access that is narrower than it
could be, or more bytes than needed. Nothing is run and nothing is measured.

With --gates, a line for each launch in a call of a gate:

  us                   the time that the arithmetic of tritonsyn/workbench/model.py gives
  instructions         of the machine code, for an element of the kernel's streams; loops count
                       as often as they turn at this size
  warps                that the grid gives each multiprocessor
  KiB                  that the warps of a multiprocessor load at once
  bound                the longest of the times that follow
"""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="compile every kernel without a GPU, and tell what came out",
        description="Compiles every kernel in every configuration that tritonsyn launches by\n"
        "itself, and reads the machine code. Needs no GPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target",
        **SEVERAL,
        metavar="sm_NN",
        help="architectures to compile for (default: sm_80 sm_90 sm_100)",
    )
    parser.add_argument("--kernel", **SEVERAL, metavar="NAME", help="only these kernels")
    parser.add_argument(
        "--gates",
        nargs="*",
        metavar="WORD",
        help="instead, say by arithmetic on the code how fast the calls of the speed gates would "
        "be on an H100: those that have one of these words in their names, or all",
    )
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compiles, prints, and returns the exit status."""
    needs_triton()
    if arguments.gates is not None:
        return _gates(arguments)
    targets = arguments.target or inspect.USUAL_TARGETS
    progress = partial(bar, quiet=arguments.json)
    try:
        outcomes = inspect.check(targets, arguments.kernel, progress=progress)
    except ValueError as error:
        raise UserError(str(error)) from None
    rows = [inspect.as_dict(*outcome) for outcome in outcomes]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)
    return int(any(row["findings"] for row in rows))


def _gates(arguments: argparse.Namespace) -> int:
    """Predicts the gates and prints; 0, since nothing is measured."""
    from ..workbench import gates
    from ..workbench.model import H100

    if arguments.target or arguments.kernel:
        raise UserError("--gates takes neither --target nor --kernel: it is about calls on sm_90")
    try:
        verdicts = gates.judge(arguments.gates, partial(bar, quiet=arguments.json))
    except (ValueError, CompileError) as error:
        raise UserError(str(error)) from None
    if arguments.json:
        print(json.dumps([verdict.as_dict() for verdict in verdicts], indent=1))
        return 0
    shown: set[int] = set()
    for verdict in verdicts:
        print(f"\n{verdict.gate.name}: {_judgement(verdict)}")
        if id(verdict.outcome) not in shown:
            shown.add(id(verdict.outcome))
            print("\n".join(f"    {line}" for line in _parts(verdict.outcome)))
    print(f"\nCalculated, not measured, with {H100}.")
    return 0


def _judgement(verdict: Any) -> str:
    said = "reached" if verdict.reached else "missed"
    times = f"{verdict.outcome.milliseconds:.4g} ms against {verdict.rival:.4g} ms"
    origin = "calculated" if verdict.gate.against else verdict.gate.origin
    return f"{verdict.gate.target}: {verdict.ratio:.3g}x, {said} ({times}, {origin})"


def _parts(outcome: Any) -> list[str]:
    """A line for each launch, and one for the operations around them."""
    lines = [_LAUNCH.format("us", *"instructions warps KiB bound".split(), "us of each", "kernel")]
    for launch in outcome.launches:
        times = ", ".join(
            f"{name} {1e6 * time:.3g}" for name, time in launch.times.items() if time >= 5e-8
        )
        numbers = (1e6 * launch.seconds, launch.instructions, launch.warps, launch.in_flight / 1024)
        figures = [f"{number:.3g}" for number in numbers]
        lines.append(_LAUNCH.format(*figures, launch.bound, times, launch.kernel))
    count = len(outcome.operations)
    return [*lines, f"{1e6 * outcome.others:>8.3g} us for {count} operations around the launches"]


_LAUNCH = "{:>8} {:>12} {:>6} {:>6} {:<8} {:<70} {}"


def _print(rows: list[dict[str, Any]]) -> None:
    kernel = None
    for row in rows:
        if row["kernel"] != kernel:
            kernel = row["kernel"]
            print(f"\n{kernel}")
            print(f"  {_LINE.format(*_TITLES)}")
        print(f"  {_LINE.format(*_cells(row))}".rstrip())
        for finding in row["findings"]:
            print(f"      {finding}")
    count = sum(len(row["findings"]) for row in rows)
    compiled = f"{len(rows)} compiled, {len({row['kernel'] for row in rows})} kernels"
    print(f"\n{compiled}: " + (f"{count} findings" if count else "all as it should be"))


_TITLES = (
    "target variant configuration registers spills shared loads stores bytes occupancy".split()
)
_LINE = "{:<7} {:<42} {:<32} {:>9} {:>6} {:>6} {:<18} {:<14} {:<9} {:>9}"
_WIDEST = 42


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    head = (row["target"], _variant(row), settings(row["config"]))
    if row["registers"] is None:
        return (*head, *("" for _ in _TITLES[3:]))
    return (
        *head,
        *(str(row[name]) for name in ("registers", "spills", "shared")),
        *(" ".join(f"{b}x{n}" for b, n in row[name].items()) for name in ("loads", "stores")),
        f"{row['bytes_per_element']:g} / {row['minimum']}" if row["streams"] else "",
        f"{row['occupancy']:.0%}",
    )


def _variant(row: dict[str, Any]) -> str:
    types = (f"{name.removesuffix('_ptr')} {row['types'][name]}" for name in row["streams"])
    text = " ".join([f"{row['variant']}", "" if row["aligned"] else "unaligned", ", ".join(types)])
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
