"""Writes docs/reference/command-line.md from what the commands say by --help."""

import contextlib
import io
import os
import re
from pathlib import Path
from unittest.mock import patch

from tritonsyn.cli import main
from tritonsyn.system import write_whole

PAGE = Path(__file__).parent / "reference" / "command-line.md"
START = """# Command line

`tritonsyn` and each of its commands explain themselves with `--help`. The exit status is 0 after
success, 1 where `check` has found something, 2 after an error that the user can mend, and 130 after
an interrupt. This page is written by `python docs/command_line.py`.
"""


def help_of(*command: str) -> str:
    """What a command says by --help."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return said.getvalue().rstrip()


@patch.dict(os.environ, COLUMNS="90")  # argparse wraps at two less
def page() -> str:
    whole = help_of()
    commands = re.findall(r"^    (\w+) ", whole, re.MULTILINE)
    parts = [("tritonsyn", whole), *((f"tritonsyn {c}", help_of(c)) for c in commands)]
    return START + "".join(f"\n## {title}\n\n```text\n{said}\n```\n" for title, said in parts)


if __name__ == "__main__":
    write_whole(PAGE, page())
