"""The rows: every size that is timed, and what it has to reach.

To add a size, a dtype or a delay, add a row. What a GPU has to reach is a speed gate, of
``tritonsyn.workbench.gates``, wherever arithmetic judges the same call.
"""

from dataclasses import replace

import torch
from workloads import (
    GPU,
    PHYSICS,
    Convolve,
    Project,
    Ragged,
    Read,
    ReadSteps,
    Scan,
    Shift,
    Sparse,
    Step,
    Target,
    Workload,
    faster,
)

from tritonsyn.workbench.gates import GATES

CPU = ("cpu",)
INFERNO, LOOP, COPY, CLONE = "inferno-ai", "plain PyTorch", "copy_", "clone"
LAGS = "snnTorch's delay, in steps"
BY_CONNECTION, IN_FULL = "tritonsyn reference, by connection", "tritonsyn reference, in full"
SHIFT, BITS = "tritonsyn triton, shift", "tritonsyn triton, bits"
_GATES = {gate.name: gate for gate in GATES}


def gate(name: str, rival: str = "", size: str = "", of: str = "") -> Target:
    """What the gate of this name demands, against a provider or another size."""
    return Target("cuda", _GATES[name].limit, rival, size, _GATES[name].least, of)


def at_rates(rates: tuple[float, ...], row: Project) -> list[Workload]:
    """The row at several densities of spikes."""
    return [replace(row, firing=rate, targets=(), sweep=True) for rate in rates]


# -- steps and reads ------------------------------------------------------------------------------

SYNAPSES: list[Workload] = [
    row
    for kind in PHYSICS
    for row in (
        Step(kind=kind, inplace=True, calls=20, devices=CPU, targets=(faster("cpu", 2, INFERNO),)),
        Step(kind=kind, calls=10, devices=CPU, targets=(faster("cpu", 30, INFERNO),)),
        Read(kind=kind, calls=3, targets=(faster("cpu", 8, INFERNO),)),
        Read(kind=kind, shared=True, calls=3, targets=(faster("cpu", 8, INFERNO),)),
    )
]

_STEP = Step(inplace=True, record=25, devices=GPU, targets=(gate("step, K=26", COPY),))
_LONGEST = gate("step, K=1024", COPY), gate("step, flat in K", size=_STEP.size)
STEPS: list[Workload] = [
    _STEP,
    replace(_STEP, record=1023, targets=_LONGEST),
    replace(_STEP, kind="double"),
    replace(_STEP, record=255, targets=(), sweep=True),
    *(replace(_STEP, synapses=n, targets=(), sweep=True) for n in (256, 1024, 16384)),
    *(
        replace(_STEP, dtype=dtype, targets=(), sweep=True)
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    ),
    *(
        replace(
            _STEP,
            inplace=False,
            record=k,
            targets=(gate(f"step, K={k + 1}, against inferno-ai", INFERNO),),
        )
        for k in (60, 1023)
    ),
    Read(
        batch=128, synapses=256, record=25, shared=True, selectors=256, devices=GPU,
        targets=(gate("read [128, 256, 256]", INFERNO),),
    ),
]  # fmt: skip

# -- sequences ------------------------------------------------------------------------------------

SEQUENCES: list[Workload] = [
    row
    for kind in PHYSICS
    for row in (
        Scan(kind=kind, record=0, targets=(faster("cpu", 10, INFERNO),)),
        Scan(kind=kind, targets=(faster("cpu", 50, INFERNO),)),
    )
] + [ReadSteps(), Ragged()]

_LONG = Scan(steps=1000, batch=64, synapses=1024, record=0, gradients=(), devices=GPU)
_TRAINED = replace(_LONG, gradients=("input", "tau"))
SCANS: list[Workload] = [
    *(
        replace(_LONG, stateless=True, source=kind, targets=(gate(f"exp_scan from {kind}", CLONE),))
        for kind in ("bool", "bits")
    ),
    replace(
        _TRAINED,
        targets=(
            gate("scan, gradients to input and tau", LOOP),
            gate("the same against accelerated-scan", "accelerated-scan"),
        ),
    ),
    replace(_TRAINED, backward=True),
    replace(_LONG, stateless=True),
    *(replace(_LONG, source=source) for source in ("bool", "bits", "float")),
    # A toy, the spoken digits as they are usually binned (700 channels, 100 steps), and beyond.
    Scan(steps=20, batch=4, synapses=32, record=0, devices=GPU, sweep=True),
    Scan(steps=100, batch=256, synapses=700, record=0, devices=GPU, sweep=True),
    *(replace(_TRAINED, steps=steps, sweep=True) for steps in (100, 300, 3000)),
    *(replace(_LONG, source="bool", steps=steps, sweep=True) for steps in (100, 300, 3000)),
    *(replace(_LONG, source="bool", synapses=n, sweep=True) for n in (64, 256, 4096)),
    *(replace(_LONG, dtype=d, sweep=True) for d in (torch.bfloat16, torch.float16)),
]

# -- delayed layers -------------------------------------------------------------------------------

_DENSE = Project(steps=100, batch=256, synapses=256, outputs=256, devices=GPU)
_DENSE_BOTH = replace(_DENSE, gradient=True)
_TEMPORAL = Project(
    steps=1000, batch=64, synapses=256, outputs=256, whole=True, firing=0.05, devices=GPU
)
LAYERS: list[Workload] = [
    Project(targets=(faster("cpu", 30, INFERNO),)),
    Project(gradient=True, targets=(faster("cpu", 15, INFERNO),)),
    replace(
        _DENSE,
        targets=(faster("cuda", 250, INFERNO), gate("delayed layer from spikes", SHIFT, of=BITS)),
    ),
    _DENSE_BOTH,
    replace(
        _DENSE_BOTH,
        record=251,
        targets=(gate("forward and backward, flat in K", size=_DENSE_BOTH.size),),
    ),
    *(
        replace(
            _TEMPORAL,
            gradient=both,
            record=k,
            targets=(gate(f"against DCLS, K={k + 1}{', both ways' if both else ''}", "DCLS"),),
        )
        for k in (25, 61, 251)
        for both in (False, True)
    ),
    replace(_DENSE_BOTH, backward=True),
    *(
        Project(delays=kind, gradient=both, targets=(faster("cpu", 5, BY_CONNECTION),))
        for kind in ("input", "output")
        for both in (False, True)
    ),
    *(Sparse(gradient=both, targets=(faster("cpu", 4, IN_FULL),)) for both in (False, True)),
    Convolve(),
    Convolve(gradient=True),
    *at_rates((0.01, 0.02, 0.1, 0.2, 0.5), _DENSE),
    replace(_DENSE, record=61, sweep=True),
    replace(_DENSE, record=251, sweep=True),
]

# -- delayed signals ------------------------------------------------------------------------------

SIGNALS: list[Workload] = [
    Shift(interp=interp, targets=(faster("cpu", 5, LAGS),)) for interp in ("linear", "gaussian")
]

# -- smaller sizes for a CPU ----------------------------------------------------------------------

_SMALL_SCAN, _SMALL_LAYER = (
    Scan(record=0, devices=CPU, sweep=True),
    Project(devices=CPU, sweep=True),
)
SMALL: list[Workload] = [
    *(replace(_SMALL_SCAN, steps=steps) for steps in (50, 150, 1500)),
    *(replace(_SMALL_SCAN, synapses=n) for n in (32, 128, 1024)),
    *(Step(inplace=True, record=k, calls=40, devices=CPU, sweep=True) for k in (5, 60)),
    *(replace(_SMALL_LAYER, record=k) for k in (5, 60)),
    *at_rates((0.01, 0.1, 0.5), _SMALL_LAYER),
    replace(_SMALL_SCAN, backward=True),
    replace(_SMALL_LAYER, gradient=True, backward=True),
    replace(_SMALL_LAYER, gradient=True, whole=True),
]

# -- what a call costs the host -------------------------------------------------------------------

CALLS: list[Workload] = [
    replace(row, batch=4, synapses=32, record=4, host=True)
    for row in (
        Step(inplace=True, calls=100),
        Step(calls=100),
        Read(calls=100),
        Scan(steps=8, gradients=()),
        Scan(steps=8),
        Project(steps=8, outputs=32),
    )
]

WORKLOADS: list[Workload] = [
    *SYNAPSES,
    *SEQUENCES,
    *CALLS,
    *SCANS,
    *STEPS,
    *LAYERS,
    *SIGNALS,
    *SMALL,
]


def is_gate(row: Workload, device: str) -> bool:
    """Whether the row has a target on the device, or one of another size is compared with it."""
    return any(
        target.device == device
        and (other is row or (other.name, target.size) == (row.name, row.size))
        for other in WORKLOADS
        for target in other.targets
    )
