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

from tritonsyn.kernels.projection import spike_sum_kernel
from tritonsyn.kernels.read import select_bwd_kernel
from tritonsyn.kernels.record import ring_take_kernel
from tritonsyn.kernels.step import synapse_step_bwd_kernel

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


if __name__ == "__main__":
    operations()
