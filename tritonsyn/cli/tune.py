"""``tritonsyn tune``: tries launch settings, and keeps a row of each."""

import argparse
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ..launch.config import check_names
from ..system import reason
from ..workbench import Row, Shape, best, install, sweep
from ..workbench.calls import CALLS, DTYPES
from ..workbench.search import trials
from ..workbench.spaces import read_spaces
from ..workbench.timers import DeviceTimer, StaticTimer
from ..workbench.workers import MACHINE_ERRORS
from .common import SEVERAL, USUAL_SHAPE, UserError, bar, needs_triton, settings

_EPILOG = f"""\
Shapes are TxBxN: steps of a sequence, samples of a batch, synapses of a group; or TxBxIxOxK, with
the inputs, outputs and slots of a delayed projection (O is as large as I, and K is 21, where they
are left out). A kernel that does one step ignores T, all but those of projections ignore O and K.

A space file is JSON, with values to try of each setting, for all kernels or by kernel:

  {{"BLOCK": [128, 256, 512], "num_warps": [1, 2, 4]}}
  {{"exp_scan_kernel": {{"BLOCK": [128], "num_warps": [1], "UNROLL": [4, 8], "chunks": [1, 8]}}}}

The folder gets results.jsonl (a line of JSON as soon as it is known) and heatmap.png. Run the same
command again to go on where it was cut off.

  tritonsyn tune --kernel exp_scan_kernel --shape {USUAL_SHAPE} --timer static
  tritonsyn tune --timer device --install        on a machine with a GPU
  tritonsyn configs                              what would be used from then on
"""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="try launch settings of kernels, and keep the best",
        description="Sweeps launch settings over kernels, shapes and dtypes. The timer 'device'\n"
        "measures on this machine's GPU; 'static' needs none, and ranks by the compiled code.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kernel", **SEVERAL, metavar="NAME", help="kernels (default: all that take the dtypes)"
    )
    shapes = f"shapes (default: {USUAL_SHAPE})"
    parser.add_argument("--shape", **SEVERAL, metavar="TxBxN[xOxK]", help=shapes)
    parser.add_argument("--dtype", **SEVERAL, metavar="NAME", help="dtypes (default: float32)")
    parser.add_argument(
        "--space", default="default", metavar="FILE", help="settings to try, or 'default'"
    )
    parser.add_argument(
        "--timer", choices=("device", "static"), default="device", help="default: device"
    )
    parser.add_argument(
        "--target",
        default="sm_90",
        metavar="sm_NN",
        help="architecture that the static timer compiles for (default: sm_90)",
    )
    parser.add_argument("--out", type=Path, default=Path("tune-out"), help="folder for the results")
    parser.add_argument("--install", action="store_true", help="put the winners into your cache")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sweeps, prints the winners, draws, and installs if asked to."""
    needs_triton()
    try:
        shapes = [Shape.parse(text) for text in arguments.shape or [USUAL_SHAPE]]
        dtypes = arguments.dtype or ["float32"]
        spaces = None if arguments.space == "default" else read_spaces(Path(arguments.space))
        kernels = arguments.kernel or _kernels(dtypes, spaces)
        trials(kernels, shapes, dtypes, spaces)  # refuses before anything is written
        with _timer(arguments) as timer:
            rows = sweep(
                kernels, shapes, dtypes, spaces, timer=timer, out=arguments.out, progress=_with_best
            )
            _conclude(rows, timer, arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    except MACHINE_ERRORS as error:
        raise UserError(f"{reason(error)}; rows so far stay, run it again to go on") from None


def _kernels(dtypes: list[str], spaces: Mapping[str, object] | None) -> list[str]:
    """The kernels that have a space and take all of the dtypes."""
    check_names("dtype", dtypes, DTYPES)
    named = [k for k in spaces or CALLS if set(dtypes) <= set(CALLS[k].dtypes)]
    if not named:
        raise ValueError(f"no kernel of the space takes all of the dtypes {', '.join(dtypes)}")
    return named


def _timer(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    if arguments.timer == "device":
        return nullcontext(DeviceTimer())
    timer = StaticTimer(arguments.target)
    print(f"ranking by the compiled code for {timer.device}: an estimate, nothing is measured")
    return timer


def _with_best(rows: Iterable[Row], total: int) -> Iterator[Row]:
    """The rows, with a bar that tells the least cost so far, of the kernel that is under way."""
    least: dict[str, float] = {}
    rows = bar(rows, total)
    for row in rows:
        kernel = row.trial.kernel
        if row.cost is not None and row.cost < least.get(kernel, float("inf")):
            least[kernel] = row.cost
            if hasattr(rows, "set_postfix_str"):
                words = settings(row.trial.config.as_dict())
                rows.set_postfix_str(f"{kernel}: {words}: {row.cost:.3g}")
        yield row


def _conclude(rows: list[Row], timer: Any, arguments: argparse.Namespace) -> None:
    winners = best(rows)
    unit = "ms" if arguments.timer == "device" else "(1 is the best conceivable)"
    for (kernel, shape, dtype), row in winners.items():
        config = settings(row.trial.config.as_dict())
        print(f"{kernel:<26} {shape!s:<14} {dtype:<9} {config:<34} cost {row.cost:.4g} {unit}")
    failed = [row for row in rows if row.cost is None]
    if failed:
        print(f"{len(failed)} of {len(rows)} configurations failed, such as: {failed[0].error}")
    print(f"wrote {arguments.out / 'results.jsonl'}")
    if not winners:
        raise UserError("no configuration worked")
    if importlib.util.find_spec("matplotlib") is None:
        print("no heat map: pip install 'tritonsyn[tune]' brings matplotlib")
    else:
        from ..workbench.picture import draw

        draw(rows, arguments.out / "heatmap.png")
        print(f"wrote {arguments.out / 'heatmap.png'}")
    if arguments.install:
        print(f"installed {len(winners)} winners: {install(rows, timer.device)}")
