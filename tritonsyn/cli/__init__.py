"""The command line: ``tritonsyn info``, ``demo``, ``check``, ``tune`` and ``configs``."""

import argparse
import os
import sys

import torch

from ..backend import BackendError
from ..system import reason
from . import check, configs, demo, info, tune
from .common import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 well, 1 for findings of a check, 2 for what the
    user can mend, failures of the machine included."""
    parser = argparse.ArgumentParser(
        prog="tritonsyn", description="Exponential current synapses for PyTorch, on Triton kernels."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (info, demo, check, tune, configs):
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, BackendError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"tritonsyn: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntritonsyn: interrupted", file=sys.stderr)
        return 130
