"""Learned delays before neurons of snnTorch: they tell from which side a sound comes.

python docs/examples/snntorch_layer.py  # needs snntorch, 6 s

Each of two ears spikes once, the nearer ear about 12 ms before the other. There is one neuron for
each side; the neuron that spikes more often is the answer. Neurons and synapses forget within a few
ms. So a neuron can only tell the sides apart if a delay lets the first spike wait for the second.
The training runs twice: without delays, where it fails, and with them.
"""

import snntorch
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from tritonsyn import DelayedLinear, SingleExponentialCurrent, parameter_groups
from tritonsyn.interop.snntorch import adapt

STEPS, LAG, LONGEST = 60, 12, 20.0  # steps of 1 ms, ms, ms


def sounds(count: int) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, B, 2]`` of both ears, and which is nearer ``[B]``."""
    side = torch.randint(2, (count,))
    near = torch.randint(1, 21, (count,))
    far = near + LAG + torch.randint(-1, 2, (count,))
    times = torch.stack([torch.where(side == 0, near, far), torch.where(side == 0, far, near)], 1)
    return nn.functional.one_hot(times, STEPS).permute(2, 0, 1).float(), side


class Network(nn.Module):
    """Two ears, two neurons, and between them delays of at most ``longest`` ms."""

    def __init__(self, longest: float) -> None:
        super().__init__()
        synapse = SingleExponentialCurrent.partialconstructor(2.0, 2.0)  # pC, ms
        self.layer = DelayedLinear(2, 2, step_time=1.0, synapse=synapse, delay=longest, spread=3.0)
        nn.init.constant_(self.layer.weight, 0.8)  # one spike is too weak, two at once suffice
        nn.init.constant_(self.layer.delay, longest / 2)
        self.currents = adapt(self.layer)  # so that snnTorch resets it
        self.neurons = snntorch.Leaky(0.5, init_hidden=True, spike_grad=surrogate.fast_sigmoid(5))

    def forward(self, spikes: Tensor) -> Tensor:
        """How often each neuron spikes, ``[B, 2]``."""
        utils.reset(self)
        # The layer takes the sequence in one call, snnTorch's neurons take step after step.
        return torch.stack([self.neurons(current) for current in self.currents(spikes)]).sum(0)


def train(longest: float) -> tuple[Network, float]:
    """The trained network, and the part of new sounds whose side it tells."""
    torch.manual_seed(0)
    net = Network(longest)
    optimizer = torch.optim.Adam(parameter_groups(net, 0.02, delay_lr=0.5))
    for update in range(1, 101):
        spikes, side = sounds(64)
        loss = nn.functional.cross_entropy(net(spikes), side)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.layer.clamp_delays_()
        if update % 25 == 0:
            print(f"  update {update:3d}: loss {loss.item():.3f}")
    spikes, side = sounds(1000)
    with torch.no_grad():
        return net, (net(spikes).argmax(1) == side).float().mean().item()


if __name__ == "__main__":
    print("training without delays, then with delays")
    print(f"without delays: {train(0.0)[1]:.1%} of the sides")
    net, accuracy = train(LONGEST)
    print(f"learned delays: {accuracy:.1%} of the sides")
    for name, delay in zip(("left", "right"), net.layer.delay.tolist(), strict=True):
        print(f"neuron {name}: left ear {delay[0]:.1f} ms, right ear {delay[1]:.1f} ms")
    print(f"the two delays of a neuron differ by about the lag, {LAG} ms: both spikes meet there")
