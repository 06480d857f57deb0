"""What a call costs the host, without a GPU.

``python bench/dispatch.py`` times calls of a small size whose launches a null driver swallows: all
of tritonsyn's and Triton's Python code, but not the driver's own call. Each is held against a bare
``torch.add`` of the same rounds; once more by modules that make no plans. Last comes a step in
plain PyTorch on the CPU, held against a loop that keeps the same records.
"""

import time
from collections.abc import Callable

import torch
from null_driver import null_driver

import tritonsyn
from tritonsyn.functional import exp_scan
from tritonsyn.modules.state import Stateful

BATCH, SYNAPSES, STEPS = 4, 32, 8
ROUNDS, CALLS, WARM_UP = 300, 20, 30
Call = Callable[[], object]


def calls() -> dict[str, Call]:
    """What is timed, by name."""
    x = torch.rand(BATCH, SYNAPSES) < 0.1
    sequence = torch.rand(STEPS, BATCH, SYNAPSES)
    times = torch.rand(BATCH, SYNAPSES)
    learned = torch.rand(BATCH, SYNAPSES, requires_grad=True)
    synapses = {
        inplace: tritonsyn.SingleExponentialCurrent(
            SYNAPSES, 1.0, spike_charge=10.0, time_constant=5.0, delay=4.0, batch_size=BATCH,
            inplace=inplace, backend="triton",
        )
        for inplace in (True, False)
    }  # fmt: skip
    decay = torch.tensor(0.8)
    record = tritonsyn.RecordTensor(1.0, 4.0, torch.zeros(BATCH, SYNAPSES), backend="triton")
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    layer = tritonsyn.DelayedLinear(
        SYNAPSES, SYNAPSES, 1.0, synapse=physics, delay=4.0, batch_size=BATCH, strategy="shift",
        backend="triton",
    )  # fmt: skip
    training = tritonsyn.SingleExponentialCurrent(
        SYNAPSES, 1.0, spike_charge=10.0, time_constant=5.0, delay=4.0, batch_size=BATCH,
        backend="triton",
    )  # fmt: skip

    def step_with_graph() -> None:
        with torch.enable_grad():
            training(learned)
        training.detach_state()

    def scan_from_rest() -> None:
        layer.clear()
        layer.scan(sequence)

    return {
        "step, streaming": lambda: synapses[True](x),
        "step, default": lambda: synapses[False](x),
        "step with a graph, detach_state": step_with_graph,
        "detach_state, nothing to do": synapses[True].detach_state,
        "current_at": lambda: synapses[True].current_at(times),
        "push": lambda: record.push(times),
        "scan": lambda: synapses[True].scan(sequence),
        "exp_scan": lambda: exp_scan(sequence, decay, backend="triton"),
        "DelayedLinear, step": lambda: layer(x),
        "DelayedLinear, scan from rest": scan_from_rest,
    }


def cpu_step() -> tuple[Call, Call]:
    """A step of a synapse in plain PyTorch, and of a loop that keeps the same records."""
    batch, synapses, slots = 32, 128, 9
    x = torch.rand(batch, synapses) < 0.1
    synapse = tritonsyn.SingleExponentialCurrent(
        synapses, 1.0, spike_charge=10.0, time_constant=5.0, delay=8.0, batch_size=batch,
        backend="reference",
    )  # fmt: skip
    currents = torch.zeros(slots, batch, synapses)
    spikes = torch.zeros(slots, batch, synapses, dtype=torch.bool)
    current, pointer = torch.zeros(batch, synapses), 0

    def loop() -> torch.Tensor:
        nonlocal current, pointer
        current = current * 0.8187 + 2.0 * x
        currents[pointer].copy_(current)
        spikes[pointer].copy_(x)
        pointer = (pointer + 1) % slots
        return current

    return (lambda: synapse(x)), loop


def seconds(call: Call) -> float:
    """Of one call, the mean of a round."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def compare(call: Call, other: Call) -> float:
    """Time of the call over that of the other: the shortest of their rounds, for others may use
    the machine too."""
    for _ in range(WARM_UP):
        call()
    rounds = [(seconds(call), seconds(other)) for _ in range(ROUNDS)]
    mine, theirs = map(min, zip(*rounds, strict=True))
    return mine / theirs


def main() -> None:
    """Prints the table."""
    a = torch.rand(BATCH, SYNAPSES)
    print(f"{'call':32} {'additions':>10} {'without plans':>14}")
    with null_driver(), torch.no_grad():
        for name, call in calls().items():
            Stateful.planning = True
            planned = compare(call, lambda: a + a)
            Stateful.planning = False
            general = compare(calls()[name], lambda: a + a)
            print(f"{name:32} {planned:10.1f} {general:14.1f}", flush=True)
    Stateful.planning = True
    with torch.no_grad():
        print(f"{'step on the CPU, over a loop':32} {compare(*cpu_step()):10.2f}")


if __name__ == "__main__":
    main()
