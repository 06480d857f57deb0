"""Run by ``test_without_gpu.py`` in its own process, without the interpreter and without a GPU.

``compare`` calls kernels in many ways, each by tritonsyn's launch, twice, and by Triton's own. All
three must have launched the same compiled kernel with the same grid and arguments.

``operations`` runs every operation through the modules, so that each kernel is compiled for a GPU
as it is really called. What comes out is garbage.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import null_driver
import smoke
import torch

from tritonsyn.kernels.projection import spike_sum_kernel
from tritonsyn.kernels.read import select_bwd_kernel
from tritonsyn.kernels.record import ring_push_kernel, ring_take_kernel
from tritonsyn.kernels.step import synapse_step_bwd_kernel
from tritonsyn.launch.launcher import launch

SIZES = (1, 16, 33, 2**31, 2**31 + 16)
SLOTS = (0, 1, 16, 17)
# Triton compiles a 1 in, and drops the argument.
WORK = (
    smoke.USUAL,
    smoke.Size(batch=1, delay=0.0),
    smoke.Size(steps=1, batch=1, synapses=1),
)
# They load and store the same elements, which Triton may lay out differently over the threads.
ORDERED = (ring_take_kernel, select_bwd_kernel, spike_sum_kernel, synapse_step_bwd_kernel)
FLAGS = ("DOUBLE", "GAIN_PER_SYNAPSE", "DECAY_PER_SYNAPSE", "RISE_PER_SYNAPSE")


def pushes():
    """The kernel that writes a slot: dtypes, alignment, numbers, tiles."""
    value = torch.zeros(64)
    records = (value, value.half(), value.bool())
    layouts = product((value, value[1:], value.int()), records, SLOTS, SIZES)
    for x, record, slot, size in layouts:
        yield ring_push_kernel, (1,), (x, record, slot, size), {"BLOCK": 64, "num_warps": 1}
    for block, warps, fused in product((32, 64), (1, 2), (True, False)):
        options = {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": fused}
        yield ring_push_kernel, (3, 2), (value, value, 0, 64), options


def retreats():
    """The adjoint of a step: absent pointers and flags."""
    t = torch.zeros(64)
    for dy, dx, z, double in product((t, None), (t, None), (t, None), (False, True)):
        options = {**dict.fromkeys(FLAGS, False), "DOUBLE": double, "BLOCK": 32, "num_warps": 1}
        pointers = (dy, dx, t, t, z, z, t, t, t)
        yield synapse_step_bwd_kernel, (2,), (*pointers, 0, 0, 2, 32, 32), options


def same(one, other):
    """Whether two launches were of the same kernel with the same grid and arguments."""
    arguments = zip(one[2], other[2], strict=True)
    return one[:2] == other[:2] and all(a is b or a == b for a, b in arguments)


def shown(args):
    """Arguments in few words."""
    return [(a.dtype, a.data_ptr() % 16) if isinstance(a, torch.Tensor) else a for a in args]


def compare():
    count, kernels = 0, set()
    with null_driver.null_driver():
        for kernel, grid, args, options in (*pushes(), *retreats()):
            null_driver.launches = made = []
            launch(kernel, grid, *args, **options)
            launch(kernel, grid, *args, **options)
            kernel[grid](*args, **{"enable_fp_fusion": True, **options})
            if len(made) != 3 or not (same(made[0], made[2]) and same(made[1], made[2])):
                raise SystemExit(
                    f"{kernel.fn.__name__}{shown(args)}, {options}: {[m[:2] for m in made]}"
                )
            count, kernels = count + 1, kernels | {made[2][0]}
    print(f"{count} ways to call, {len(kernels)} compiled kernels")


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
    {"compare": compare, "operations": operations}[sys.argv[1]]()
