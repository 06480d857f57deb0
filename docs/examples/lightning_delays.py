"""Learns delays with Lightning, with a checkpoint, a log and a picture of the delays each epoch.

python docs/examples/lightning_delays.py  # needs pytorch-lightning and matplotlib, 10 s

Called again with more epochs, it goes on where it stopped. Data and layer are in ``patterns.py``.
"""

import argparse
from pathlib import Path

import patterns
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from tritonsyn import parameter_groups, plot


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = patterns.layer()
        self.register_buffer("before", self.layer.delay.detach().clone())

    def train_dataloader(self):
        data, here = patterns.samples(), self.trainer
        # Shuffles by the number of the epoch, also where training resumes.
        order = DistributedSampler(data, here.world_size, here.global_rank)
        return DataLoader(data, batch_size=32, sampler=order)  # the last batch has 8 samples

    def configure_optimizers(self):
        return torch.optim.Adam(parameter_groups(self, 0.02, delay_lr=1.0))

    def training_step(self, batch):
        spikes, labels = batch
        self.layer.clear()  # after which a batch may be of any size
        scores = self.layer(spikes)[:, -1]
        loss, right = cross_entropy(scores, labels), scores.argmax(1) == labels
        self.log_dict(
            {"loss": loss, "accuracy": right.float().mean()}, on_step=False, on_epoch=True
        )
        return loss

    def on_train_batch_end(self, *_):
        self.layer.clamp_delays_()

    def on_train_epoch_end(self):
        delay, figure = self.layer.delay.detach(), Figure(layout="constrained")
        self.log_dict({"delay_mean": delay.mean(), "delay_std": delay.std()}, prog_bar=True)
        plot.delays(self.layer, self.before, ax=figure.subplots())
        figure.savefig(Path(self.logger.log_dir) / "delays.png")


def train(epochs, out):
    """Returns the network after so many epochs, those of earlier calls included."""
    torch.manual_seed(0)
    network, last = Network(), Path(out) / "last.ckpt"
    keep = ModelCheckpoint(last.parent, last.stem, enable_version_counter=False)
    how = {"logger": CSVLogger(out, ""), "callbacks": [keep], "log_every_n_steps": 1}
    trainer = pl.Trainer(max_epochs=epochs, **how)
    trainer.fit(network, ckpt_path=last if last.exists() else None)
    return network


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--epochs", type=int, default=10, help="those of earlier calls included")
    cli.add_argument("--out", default="lightning-out", help="folder for checkpoint and logs")
    train(**vars(cli.parse_args()))
