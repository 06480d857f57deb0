"""What tritonsyn launches is what Triton would have launched."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tritonsyn.launch import common


def test_a_kept_kernel_is_the_one_that_triton_finds():
    script = Path(__file__).with_name("launches.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.match(r"(\d+) ways to call, (\d+) compiled kernels", run.stdout)
    assert found and int(found[1]) > int(found[2]) > 50
    assert not common._compiled, "the kernels of another process"
