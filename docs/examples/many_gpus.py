"""Trains a small network with delays on two GPUs by nccl, or on CPU cores by gloo.

torchrun --nproc_per_node 2 docs/examples/many_gpus.py ddp  # needs two GPUs or cores, 10 s

The network learns to tell patterns of spike times apart. With ``ddp`` each process has a part of
the batch, with ``tensor`` a part of the hidden neurons. Both learn what one process learns.
"""

import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tritonsyn import DelayedLinear, SingleExponentialCurrent
from tritonsyn.distributed import DelayedColwiseParallel, gather_spikes

INPUTS, NEURONS, CLASSES, STEPS, BATCH = 20, 32, 4, 40, 32
PATTERNS = torch.randint(STEPS // 2, (CLASSES, INPUTS), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers with delays, and neurons without memory, which ``gather`` makes known to all."""

    def __init__(self, gather=lambda spikes: spikes) -> None:
        super().__init__()
        physics = SingleExponentialCurrent.partialconstructor(8.0, 4.0)
        self.hidden = DelayedLinear(INPUTS, NEURONS, 1.0, synapse=physics, delay=20.0, bias=True)
        self.readout = DelayedLinear(NEURONS, CLASSES, 1.0, synapse=physics, delay=5.0)
        self.gather = gather

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden.clear()
        self.readout.clear()
        current = self.hidden(x)
        smooth = torch.sigmoid(4.0 * (current - 1.0))  # the gradient of a spike
        return self.readout(self.gather((current > 1.0) + (smooth - smooth.detach()))).mean(0)


def batch(update: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes ``[T, B, inputs]`` and their classes, the same on every process."""
    generator = torch.Generator().manual_seed(update)
    classes = torch.randint(CLASSES, (BATCH,), generator=generator)
    times = PATTERNS[classes] + torch.randint(3, (BATCH, INPUTS), generator=generator)
    return nn.functional.one_hot(times, STEPS).permute(2, 0, 1).float(), classes


def main() -> None:
    way, kind = sys.argv[-1], "cuda" if torch.cuda.is_available() else "cpu"
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    mesh = init_device_mesh(kind, (processes,))  # starts nccl or gloo, and takes a GPU
    torch.manual_seed(0)
    if way == "ddp":
        net = DistributedDataParallel(Net().to(kind))
    else:
        net = Net(lambda spikes: gather_spikes(spikes, mesh)).to(kind)
        parallelize_module(net, mesh, {"hidden": DelayedColwiseParallel()})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for update in range(40):
        x, classes = (tensor.to(kind) for tensor in batch(update))
        if way == "ddp":
            x, classes = x.chunk(processes, 1)[rank], classes.chunk(processes)[rank]
        y = net(x)
        loss = nn.functional.cross_entropy(y, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = torch.stack([loss.detach(), (y.argmax(1) == classes).float().mean()]) / processes
        distributed.all_reduce(found)
        if rank == 0 and update % 10 == 9:
            print(f"{update + 1} updates: loss {found[0]:.4f}, right {found[1]:.0%}")


if __name__ == "__main__":
    main()
    distributed.destroy_process_group()
