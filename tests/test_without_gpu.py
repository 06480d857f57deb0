"""What happens on a GPU, seen without one, by scripts in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tritonsyn.kernels.signatures import SIGNATURES


def printed(script: str, *arguments: str) -> str:
    """What a script beside this file prints, without the interpreter."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_kept_kernel_is_the_one_that_triton_finds():
    output = printed("launches.py", "compare")
    found = re.match(r"(\d+) ways to call, (\d+) compiled kernels", output)
    assert found and int(found[1]) > int(found[2]) > 50


def test_every_kernel_compiles_as_the_modules_launch_it():
    """Also where a size is 1; and with a barrier where threads see each other's elements."""
    *_, launched, ordered = printed("launches.py", "operations").splitlines()
    assert launched.split()[1:] == sorted(SIGNATURES)
    assert len(ordered.split()[1:]) == 4


def test_every_operation_stays_on_its_device_and_never_waits():
    *_, launched = printed("devices.py").splitlines()
    assert launched.split()[1:] == sorted(SIGNATURES)
