"""Reads scanned digits one pixel per millisecond, with recurrent connections that learn delays.

python docs/examples/digits.py  # needs scikit-learn, 20 s
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from tritonsyn import DelayedLinear, DoubleExponentialCurrent

NEURONS, BATCH, KEEP = 64, 32, 0.6  # what is left of a membrane after a step of 1 ms


def spike(v):
    """1 where a membrane is above 1; its gradient is that of a smooth step."""
    smooth = (v - 1.0) / (1.0 + 2.0 * (v - 1.0).abs())
    return (v > 1.0).float() + (smooth - smooth.detach())


class Network(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inputs, self.readout = nn.Linear(1, NEURONS), nn.Linear(NEURONS, 10)
        nn.init.normal_(self.inputs.weight, std=2.0)
        synapse = DoubleExponentialCurrent.partialconstructor(2.5, 1.0, 0.5)  # pC, ms, ms
        longest = 32.0 if kind in ("delayed", "fixed") else 0.0  # ms
        self.recurrent = DelayedLinear(NEURONS, NEURONS, 1.0, synapse=synapse, delay=longest)
        self.recurrent.delay.requires_grad_(kind == "delayed")  # at first 0 to 32 ms, at random
        nn.init.normal_(self.recurrent.weight, std=0.0 if kind == "none" else 0.5 / NEURONS**0.5)
        self.recurrent.weight.requires_grad_(kind != "none")

    def forward(self, pixels):  # [T, B] to [B, 10]
        v = z = torch.zeros(pixels.shape[1], NEURONS)
        self.recurrent.clear()
        with self.recurrent.unrolled(len(pixels)):
            for current in self.inputs(pixels.unsqueeze(2)):
                v = KEEP * v * (1.0 - z.detach()) + current + self.recurrent(z)
                z = spike(v)
        return self.readout(z)  # the spikes of the last ms


def train(network, permuted, seed, epochs, pause, digits=1344):
    """Returns the trained network, its delays before, and the test accuracy after each epoch."""
    torch.manual_seed(seed)
    pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))  # for every seed
    pixels = pixels.float().t()[order if permuted else slice(None)] / 16.0
    pixels = torch.cat((pixels, torch.zeros(pause, len(labels))))
    learn, test = torch.randperm(len(labels)).split([1344, 453])
    model, accuracy = Network(network), []
    delay = model.recurrent.delay
    before, others = delay.detach().clone(), [p for p in model.parameters() if p is not delay]
    optimizer = torch.optim.Adam([{"params": others}, {"params": [delay]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.2], epochs * digits // BATCH)
    for epoch in range(1, epochs + 1):
        for batch in learn[torch.randperm(digits)].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[:, batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
            model.recurrent.clamp_delays_()
        with torch.no_grad():
            right = model(pixels[:, test]).argmax(1) == labels[test]
        accuracy.append(right.float().mean().item())
        print(f"epoch {epoch:2d}: {accuracy[-1]:.1%} of the test digits", flush=True)
    return model, before, accuracy


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--network", default="delayed", choices="delayed fixed undelayed none".split())
    cli.add_argument("--permuted", action="store_true", help="show the pixels in random order")
    for name, default in {"seed": 0, "epochs": 10, "pause": 16}.items():  # the pause in ms
        cli.add_argument(f"--{name}", type=int, default=default)
    train(**vars(cli.parse_args()))
