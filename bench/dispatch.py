"""What a call costs the host on the Triton path, without a GPU.

``python bench/dispatch.py`` times calls of a small size whose launches a null driver swallows: all
of tritonsyn's and Triton's Python code, but not the driver's own call. Each is held against a bare
``torch.add`` of the same rounds.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from null_driver import null_driver

import tritonsyn
from tritonsyn.functional import exp_scan

BATCH, SYNAPSES, STEPS = 4, 32, 8
ROUNDS, CALLS, WARM_UP = 300, 20, 30
Call = Callable[[], object]


def calls() -> dict[str, Call]:
    """What is timed, by name."""
    x = torch.rand(BATCH, SYNAPSES) < 0.1
    sequence = torch.rand(STEPS, BATCH, SYNAPSES)
    times = torch.rand(BATCH, SYNAPSES)
    synapses = {
        inplace: tritonsyn.SingleExponentialCurrent(
            SYNAPSES, 1.0, spike_charge=10.0, time_constant=5.0, delay=4.0, batch_size=BATCH,
            inplace=inplace, backend="triton",
        )
        for inplace in (True, False)
    }  # fmt: skip
    decay = torch.tensor(0.8)
    return {
        "step, streaming": lambda: synapses[True](x),
        "step, default": lambda: synapses[False](x),
        "current_at": lambda: synapses[True].current_at(times),
        "scan": lambda: synapses[True].scan(sequence),
        "exp_scan": lambda: exp_scan(sequence, decay, backend="triton"),
    }


def seconds(call: Call) -> float:
    """Of one call, the mean of a round."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def compare(call: Call, addition: Call) -> float:
    """Time of the call over that of the addition."""
    ratios = []
    for _ in range(WARM_UP):
        call()
    for _ in range(ROUNDS):
        added = seconds(addition)
        ratios.append(seconds(call) / added)
    return median(ratios)


def main() -> None:
    """Prints the table."""
    a = torch.rand(BATCH, SYNAPSES)
    print(f"{'call':18} {'additions':>10}")
    with null_driver(), torch.no_grad():
        for name, call in calls().items():
            print(f"{name:18} {compare(call, lambda: a + a):10.1f}", flush=True)


if __name__ == "__main__":
    main()
