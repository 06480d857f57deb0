"""Learns delays with accelerate, with a checkpoint, a log and a picture of the delays each epoch.

python docs/examples/accelerate_delays.py  # needs accelerate and matplotlib, 10 s

Called again with more epochs, it goes on where it stopped. Data and layer are in ``patterns.py``.
"""

import argparse
import csv
from pathlib import Path

import patterns
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, tqdm
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from tritonsyn import parameter_groups, plot


class Log:
    """A line for each epoch; it is saved with the rest, and so tells how many there were."""

    def __init__(self):
        self.lines = []

    def state_dict(self):
        return {"lines": self.lines}

    def load_state_dict(self, state):
        self.lines = state["lines"]

    def write(self, out, layer, before):
        columns = "epoch", "accuracy", "delay_mean", "delay_std"
        with (out / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *self.lines])
        figure = Figure(layout="constrained")
        plot.delays(layer, before, ax=figure.subplots())
        figure.savefig(out / "delays.png")


def train(epochs, out):
    """Returns the layer after so many epochs, those of earlier calls included."""
    torch.manual_seed(0)
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    out, log, layer = Path(out), Log(), patterns.layer()
    before = layer.delay.detach().clone()
    optimizer = torch.optim.Adam(parameter_groups(layer, 0.02, delay_lr=1.0))
    batches = DataLoader(patterns.samples(), 32, shuffle=True)  # the last batch has 8 samples
    net, optimizer, batches = accelerator.prepare(layer, optimizer, batches)
    accelerator.register_for_checkpointing(log)
    if (out / "last").exists():
        accelerator.load_state(out / "last")
    for epoch in range(len(log.lines), epochs):
        batches.set_epoch(epoch)  # shuffles by it, also where training resumes
        right = 0
        for spikes, labels in tqdm(batches, desc=f"epoch {epoch}"):
            layer.clear()  # after which a batch may be of any size
            scores = net(spikes)[:, -1]
            accelerator.backward(cross_entropy(scores, labels))
            optimizer.step()
            optimizer.zero_grad()
            layer.clamp_delays_()
            right += accelerator.gather_for_metrics(scores.argmax(1) == labels).sum().item()
        std, mean = (value.item() for value in torch.std_mean(layer.delay))
        log.lines.append((epoch, right / patterns.SAMPLES, mean, std))
        accelerator.save_state(out / "last")
        if accelerator.is_main_process:
            log.write(out, layer, before)
    return layer


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--epochs", type=int, default=10, help="those of earlier calls included")
    cli.add_argument("--out", default="accelerate-out", help="folder for checkpoint and logs")
    train(**vars(cli.parse_args()))
