"""Captures one step of a recurrent network in a CUDA graph, and compares replays with eager steps.

python docs/examples/cuda_graph.py  # needs a GPU to capture, 3 s

A step of a small network runs many short kernels. A graph launches all of them by one call. It uses
the same memory each time: copy the inputs of a step into ``x``, replay, and read its outputs in
``z``. A CPU has no graphs, so there the step runs without one. The rest of the code is the same, so
you can write and test it anywhere.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from tritonsyn import DelayedLinear, SingleExponentialCurrent

NEURONS, BATCH, STEPS = 128, 8, 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Step = Callable[[], object]


class Network:
    """Neurons of graded output, each connected to all, with delays up to 20 ms."""

    def __init__(self, capturable: bool) -> None:
        torch.manual_seed(0)
        synapse = SingleExponentialCurrent.partialconstructor(2.0, 5.0)  # pC, ms
        how = {"delay": 20.0, "batch_size": BATCH, "capturable": capturable, "device": DEVICE}
        self.recurrent = DelayedLinear(NEURONS, NEURONS, step_time=1.0, synapse=synapse, **how)
        self.x, self.z = torch.zeros(2, BATCH, NEURONS, device=DEVICE)  # inputs, outputs

    def step(self) -> None:
        self.z.copy_(torch.sigmoid(self.x + self.recurrent(self.z)))


def captured(step: Step) -> Step:
    """A function that replays the step; on a CPU the step itself."""
    if DEVICE == "cpu":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def run(network: Network, step: Step, inputs: Tensor) -> tuple[Tensor, float]:
    """The outputs of all steps ``[T, B, N]``, and the microseconds of a step."""
    network.recurrent.clear()  # both runs start from silence
    network.z.zero_()
    outputs = torch.empty_like(inputs)
    start = time.perf_counter()
    for x, z in zip(inputs, outputs, strict=True):
        network.x.copy_(x)
        step()
        z.copy_(network.z)
    outputs.sum().item()  # waits for the GPU
    return outputs, (time.perf_counter() - start) / len(inputs) * 1e6


@torch.no_grad()
def main() -> None:
    eager, static = Network(capturable=False), Network(capturable=True)
    for network in (eager, static):
        network.step()  # once before, so that kernels are compiled
    inputs = torch.randn(STEPS, BATCH, NEURONS, device=DEVICE)
    expected, before = run(eager, eager.step, inputs)
    outputs, after = run(static, captured(static.step), inputs)
    way = "replays of a CUDA graph" if DEVICE == "cuda" else "the step to capture, without a graph"
    print(f"eager steps: {before:.0f} us each")
    print(f"{way}: {after:.0f} us each")
    print(f"largest difference of an output: {(outputs - expected).abs().max():.1e}")


if __name__ == "__main__":
    main()
