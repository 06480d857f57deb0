"""Ranks launch settings of a kernel: by their times on a GPU, else by the compiled code.

python docs/examples/tune_kernel.py  # needs triton, so Linux, 20 s

``exp_scan_kernel`` computes the currents of whole sequences. Its launch settings change its speed,
not its results. Without a GPU the ranking is an estimate for an H100: it finds bad settings, but
differences of a few percent mean nothing. ``tritonsyn tune`` ranks the settings of all kernels, and
can install the winners.
"""

from contextlib import nullcontext

import torch

from tritonsyn import SingleExponentialCurrent
from tritonsyn.workbench import LaunchConfig, Row, Shape, override_config, sweep
from tritonsyn.workbench.timers import DeviceTimer, StaticTimer

KERNEL, DTYPE = "exp_scan_kernel", "float32"
SHAPE = Shape(steps=1000, batch=64, synapses=1024)
SPACE = {
    "BLOCK": [128, 512],  # elements of the tile of a program
    "num_warps": [1, 4],  # groups of 32 threads that share it
    "UNROLL": [4, 16],  # steps whose loads are in flight at once
}


def words(config: LaunchConfig) -> str:
    return ", ".join(f"{name} {getattr(config, name)}" for name in SPACE)


def ranked() -> list[Row]:
    """All settings of the space, the best first."""
    timed = torch.cuda.is_available()
    with nullcontext(DeviceTimer()) if timed else StaticTimer("sm_90") as timer:
        print("timed on" if timed else "estimated for", timer.device)
        rows = sweep([KERNEL], [SHAPE], [DTYPE], SPACE, timer=timer)
    return sorted((row for row in rows if row.cost is not None), key=lambda row: row.cost)


def main() -> None:
    rows = ranked()
    for row in rows:
        print(f"{row.cost / rows[0].cost:5.2f}  {words(row.trial.config)}")
    winner = rows[0].trial.config
    print(f"best: {words(winner)}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    synapse = SingleExponentialCurrent(64, 1.0, spike_charge=10.0, time_constant=5.0, device=device)
    with override_config(winner, KERNEL):  # on a GPU, launches in this block use the winner
        synapse.scan(torch.rand(100, 8, 64, device=device) < 0.05)


if __name__ == "__main__":
    main()
