"""Run by ``test_without_gpu.py`` in its own process, without the interpreter and without a GPU.

It runs every operation through the modules, so that each kernel is compiled for a GPU as it is
really called. What comes out is garbage.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import null_driver
import smoke
import torch

from tritonsyn.kernels.read import select_bwd_kernel, select_fwd_kernel
from tritonsyn.kernels.record import ring_take_kernel
from tritonsyn.kernels.spikes import spike_sum_kernel
from tritonsyn.kernels.step import synapse_step_bwd_kernel
from tritonsyn.launch import read as launch
from tritonsyn.values import Reading, ReadRule

# Triton compiles a 1 in, and drops the argument.
WORK = (smoke.USUAL, smoke.Size(batch=1, delay=0.0), smoke.Size(steps=1, batch=1, synapses=1))
# They load and store the same elements, which Triton may lay out differently over the threads.
ORDERED = (ring_take_kernel, select_bwd_kernel, spike_sum_kernel, synapse_step_bwd_kernel)


def operations():
    with null_driver.null_driver():
        null_driver.launches = made = []
        for size in WORK:
            for name, operation in smoke.operations(torch.device("cpu"), size):
                operation("triton")
                print(size, name)
    print("launched:", *sorted({name for (name, _), _, _ in made}))
    for kernel in ORDERED:
        compiled = kernel.device_caches[0][0].values()
        if not all("barrier" in one.asm["ttgir"] for one in compiled):
            raise SystemExit(f"{kernel.fn.__name__} stores without a barrier what it loads")
    print("ordered:", *(kernel.fn.__name__ for kernel in ORDERED))


def reads():
    """Rules of reads are numbers of run time: a sweep over them compiles a kernel once."""
    rules = [
        ReadRule("expdecay", 0.3, 4.5, 0.0, 0.0),  # 16 slots, of which Triton takes note
        ReadRule("expdecay", 1.7, 17.0, 1e-3, -1.0),
        ReadRule("expdecay", 1.1, 0.0, 1.0, 1.0),
    ]
    with null_driver.null_driver():
        for rule in rules:
            record, rate = torch.zeros(round(rule.limit / rule.step) + 1, 3, 5), torch.ones(())
            reading = Reading(torch.zeros(1, 5, 1), [rate], [0], rule)
            launch.select([record], reading)
            launch.select_backward(torch.zeros(3, 5, 1), [record], reading)
    for kernel in (select_fwd_kernel, select_bwd_kernel):
        if (compiled := len(kernel.device_caches[0][0])) != 1:
            raise SystemExit(f"{kernel.fn.__name__} is compiled {compiled} times")


if __name__ == "__main__":
    reads()
    operations()
