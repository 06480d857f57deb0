"""Finds delays planted in a layer, from random ones: python bench/planted_delays.py

Learns delays (0 to 40 ms) and weights of a layer of 12 inputs and 2 outputs from what another layer
makes of random spikes or numbers, by several gradients. A delay is found if it ends within a step.
"""

import argparse

import torch

from tritonsyn import (
    AlphaCurrent,
    DelayedLinear,
    DoubleExponentialCurrent,
    SingleExponentialCurrent,
)

INPUTS, OUTPUTS, STEPS, BATCH, LONGEST, UPDATES = 12, 2, 80, 16, 40.0, 400
SYNAPSES = {
    "single": SingleExponentialCurrent.partialconstructor(4.0, 4.0),
    "double": DoubleExponentialCurrent.partialconstructor(4.0, 4.0, 2.0),
    "alpha": AlphaCurrent.partialconstructor(4.0, 2.0),
}
DRIVES = {"spikes": lambda *size: torch.rand(size) < 0.04, "numbers": torch.randn}
WAYS = {
    "exact derivative": (0.0, 0.0),
    "spread 5 ms": (5.0, 5.0),
    "spread 20 ms": (20.0, 20.0),
    "spread 20 to 1 ms": (20.0, 1.0),
    "Gaussian taps, 20 to 0.23 ms": (20.0, 0.23),
}
"""The widths at the start and the end, in between geometric."""


def layer(synapse: str, weight: torch.Tensor, delay: torch.Tensor) -> DelayedLinear:
    inits = {"weight_init": lambda _: weight, "delay_init": lambda _: delay}
    how = {"synapse": SYNAPSES[synapse], "delay": LONGEST, "batch_size": BATCH}
    return DelayedLinear(INPUTS, OUTPUTS, 1.0, **how, **inits)


def gaussian_taps(student: DelayedLinear, x: torch.Tensor, width: float) -> torch.Tensor:
    """The layer with a Gaussian over all whole steps in the place of each delay, as in DCLS."""
    currents = student.synapse.scan(x)
    steps = torch.arange(LONGEST + 1)
    taps = (-0.5 * ((steps - student.delay.unsqueeze(-1)) / width) ** 2).exp()
    taps = student.weight.unsqueeze(-1) * taps / (taps.sum(-1, keepdim=True) + 1e-7)
    padded = torch.nn.functional.pad(currents.permute(1, 2, 0), (len(steps) - 1, 0))
    return torch.nn.functional.conv1d(padded, taps.flip(-1)).permute(2, 0, 1)


def learn(synapse: str, way: str, seed: int, last: bool, drive: str) -> tuple[float, float]:
    """The part of the delays that is found, and the error of the layer relative to the variance."""
    torch.manual_seed(seed)
    known, start = (LONGEST * torch.rand(OUTPUTS, INPUTS) for _ in range(2))
    weight = 0.5 + torch.rand(OUTPUTS, INPUTS)
    teacher = layer(synapse, weight, known.round())
    student = layer(synapse, torch.ones_like(weight), start)
    taps = way.startswith("Gaussian")
    groups = [{"params": student.delay, "lr": 1.0}, {"params": student.weight, "lr": 0.02}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    first, end = WAYS[way]
    for i in range(UPDATES):
        width = first and first * (end / first) ** (i / UPDATES)
        x = DRIVES[drive](STEPS, BATCH, INPUTS)
        teacher.clear()
        student.clear()
        with torch.no_grad():
            wanted = teacher.scan(x)
        student.spread = 0.0 if taps else width
        error = (gaussian_taps(student, x, width) if taps else student.scan(x)) - wanted
        optimizer.zero_grad()
        (error[-1:] if last else error).square().mean().backward()
        optimizer.step()
        schedule.step()
        student.clamp_delays_()
    found = ((student.delay - teacher.delay).abs() < 1).float().mean().item()
    if taps:
        student.round_delays_()  # as their authors do
    student.clear()
    with torch.no_grad():
        return found, ((student.scan(x) - wanted).square().mean() / wanted.var()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--synapse", choices=SYNAPSES, default="single")
    parser.add_argument("--last", action="store_true", help="judge the last step only")
    parser.add_argument("--drive", choices=DRIVES, default="spikes", help="what the inputs are")
    options = parser.parse_args()
    print("| gradient | delays found | error |\n|---|---|---|")
    for way in WAYS:
        how = options.last, options.drive
        runs = [learn(options.synapse, way, seed, *how) for seed in range(options.seeds)]
        found, errors = zip(*runs, strict=True)
        print(
            f"| {way} | {sum(found) / len(runs):.0%} | {sum(errors) / len(runs):.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
