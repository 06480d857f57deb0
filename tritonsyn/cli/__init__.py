"""The command line: ``tritonsyn info``, ``demo``, ``check``, ``tune`` and ``configs``."""

import argparse
import sys

from ..backend import BackendError
from . import check, configs, demo, info, tune
from .common import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 well, 1 for findings of a check, 2 for what the
    user can mend."""
    parser = argparse.ArgumentParser(
        prog="tritonsyn", description="Exponential current synapses for PyTorch, on Triton kernels."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, demo, check, tune, configs):
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (UserError, BackendError) as error:
        print(f"tritonsyn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntritonsyn: interrupted", file=sys.stderr)
        return 130
