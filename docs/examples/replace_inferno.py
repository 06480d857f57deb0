"""Runs a small network of inferno with its own synapses and with ours, and compares.

python docs/examples/replace_inferno.py  # needs inferno-ai and Python 3.11, 4 s

The network is a dense connection with delays, and the neurons behind it. Spike-timing dependent
plasticity (STDP) changes the weights. The two runs differ only in the synapses: see ``SYNAPSES``.
"""

from collections.abc import Callable

import inferno
import torch
from inferno import learn, neural
from torch import Tensor

import tritonsyn

INPUTS, NEURONS, STEPS = 100, 50, 300  # steps of 1 ms
SYNAPSES = {
    "inferno": neural.SingleExponentialCurrent.partialconstructor(10.0, 5.0),  # pC, ms
    "tritonsyn": tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0),
}


def network(synapse: Callable) -> neural.Serial:
    """A connection with delays up to 8 ms and weights from 0 to 0.3, and the neurons behind it."""
    dense = neural.LinearDense(
        INPUTS, NEURONS, 1.0, synapse=synapse, delay=8.0,
        weight_init=lambda weight: inferno.rescale(inferno.uniform(weight), 0.0, 0.3),
        delay_init=lambda delay: inferno.rescale(inferno.uniform(delay), 0.0, 8.0),
    )  # fmt: skip
    dense.updater = dense.defaultupdater()
    neurons = neural.LIF(
        NEURONS, 1.0, rest_v=-60.0, reset_v=-65.0, thresh_v=-50.0, refrac_t=2.0,
        time_constant=20.0, resistance=5.0,
    )  # fmt: skip
    return neural.Serial(dense, neurons)


def run(synapse: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """The spikes ``[T, 1, neurons]``, and the weights before and after STDP."""
    torch.manual_seed(0)  # the same start and the same inputs for both
    layer = network(synapse)
    before = layer.connection.weight.detach().clone()
    stdp = learn.STDP(1e-3, -1e-3, 20.0, 20.0)
    stdp.register_cell("only", layer.cell)
    spikes = []
    for _ in range(STEPS):
        spikes.append(layer(torch.rand(1, INPUTS) < 0.05))
        stdp()
        layer.connection.update()
    return torch.stack(spikes), before, layer.connection.weight.detach()


def main() -> None:
    results = {name: run(synapse) for name, synapse in SYNAPSES.items()}
    for name, (spikes, before, after) in results.items():
        change = (after - before).abs().max()
        print(f"{name}: {int(spikes.sum())} spikes, weights changed by up to {change:.3f}")
    theirs, ours = results.values()
    print(f"spikes that differ: {int((theirs[0] != ours[0]).sum())}")
    print(f"largest difference of a weight: {(theirs[2] - ours[2]).abs().max():.1e}")


if __name__ == "__main__":
    main()
