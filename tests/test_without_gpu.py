"""What happens on a GPU, seen without one, by scripts in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tritonsyn.launch.config import HEURISTICS


def printed(script: str) -> str:
    """What a script beside this file prints, without the interpreter."""
    command = [sys.executable, str(Path(__file__).with_name(script))]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_every_kernel_compiles_as_the_modules_launch_it():
    """Also where a size is 1; and with a barrier where threads see each other's elements."""
    *_, launched, ordered = printed("launches.py").splitlines()
    assert launched.split()[1:] == sorted(HEURISTICS)
    assert len(ordered.split()[1:]) == 4


@pytest.mark.slow
def test_every_operation_stays_on_its_device_and_never_waits():
    *_, launched = printed("devices.py").splitlines()
    assert launched.split()[1:] == sorted(HEURISTICS)


@pytest.mark.slow
def test_plans_launch_what_the_general_path_does():
    printed("plans.py")
