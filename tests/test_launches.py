"""What tritonsyn launches on a GPU, seen without one: ``launches.py`` with a null driver."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tritonsyn.kernels.signatures import SIGNATURES


def launches(what: str) -> str:
    """What the script prints, in a process without the interpreter."""
    script = Path(__file__).with_name("launches.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(script), what], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_kept_kernel_is_the_one_that_triton_finds():
    found = re.match(r"(\d+) ways to call, (\d+) compiled kernels", launches("compare"))
    assert found and int(found[1]) > int(found[2]) > 50


def test_every_kernel_compiles_as_the_modules_launch_it():
    """Also where a size is 1; and with a barrier where threads see each other's elements."""
    *_, launched, ordered = launches("operations").splitlines()
    assert launched.split()[1:] == sorted(SIGNATURES)
    assert len(ordered.split()[1:]) == 4
