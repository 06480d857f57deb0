"""Every kernel compiles for real GPUs, without one, and keeps its values in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_kernels import all_kernels

from tritonsyn.kernels.signatures import SIGNATURES

SCRIPT = Path(__file__).with_name("compile_kernels.py")
ARCHITECTURES = (80, 90, 100)
FEW = 16  # bytes: ptxas moves a few scalars of a kernel to the stack on some architectures


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """What each variant needs on each architecture, from a process without the interpreter."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *map(str, ARCHITECTURES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_kernel_has_a_signature_with_all_of_its_arguments():
    kernels = all_kernels()
    assert kernels.keys() == SIGNATURES.keys()
    for name, kernel in kernels.items():
        for variant in SIGNATURES[name]:
            assert sorted([*variant.types, *variant.constants]) == sorted(kernel.arg_names)


def test_every_variant_compiles(compiled):
    assert len(compiled) == len(ARCHITECTURES) * sum(map(len, SIGNATURES.values()))


def test_nothing_spills(compiled):
    spilling = [
        f"{c['kernel']} variant {c['variant']} on sm_{c['architecture']}: "
        f"{c['STACK'] + c['LOCAL']} bytes"
        for c in compiled
        if c["STACK"] + c["LOCAL"] > FEW
    ]
    assert not spilling, "\n".join(spilling)
