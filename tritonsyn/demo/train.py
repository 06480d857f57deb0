"""Training of the demonstration's network, with learned delays and with delays frozen at zero."""

import time
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..modules.parameters import parameter_groups
from .data import Digits, encode, encode_test, load
from .network import Network

BATCH = 64
_RATE, _DELAY_RATE = 0.015, 0.1


@dataclass
class Run:
    """What training one network gave."""

    network: Network
    initial_delays: list[torch.Tensor]
    accuracy: list[float] = field(default_factory=list)  # on the test set, after each epoch
    loss: list[float] = field(default_factory=list)  # on the training set, mean of each epoch
    seconds: float = 0.0

    @property
    def test_accuracy(self) -> float:
        """After the last epoch: nothing is chosen by looking at the test set."""
        return self.accuracy[-1]


def train(epochs: int, seed: int, device: torch.device, frozen: bool, quiet: bool = False) -> Run:
    """Trains a network; ``frozen`` holds its delays at zero, all else being the same."""
    torch.manual_seed(seed)
    training, test = load(seed)
    network = Network(frozen).to(device)
    delays = [layer.delay for layer in network.layers()]
    run = Run(network, [delay.detach().cpu().clone() for delay in delays])
    groups = parameter_groups(network, _RATE, delay_lr=_DELAY_RATE)
    optimizer = torch.optim.Adam(groups)
    batches = max(1, len(training.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=epochs * batches, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    test_spikes = encode_test(test.images).to(device)
    started = time.perf_counter()
    name = "delays frozen at 0" if frozen else "delays learned"
    with tqdm(total=epochs * batches, desc=f"{name:>18}", unit="batch", disable=quiet) as bar:
        for _ in range(epochs):
            total = 0.0
            for spikes, labels in _batches(training, batches, generator):
                loss = F.cross_entropy(network(spikes.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                for layer in network.layers():
                    layer.clamp_delays_()
                total += loss.item()
                bar.update()
            run.loss.append(total / batches)
            run.accuracy.append(_accuracy(network, test_spikes, test.labels))
            bar.set_postfix_str(f"test {run.accuracy[-1]:.1%}")
    run.seconds = time.perf_counter() - started
    return run


def _batches(
    digits: Digits, count: int, generator: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of freshly drawn spike trains and their labels."""
    order = torch.randperm(len(digits.labels), generator=generator)
    spikes, labels = encode(digits.images[order], generator), digits.labels[order]
    return list(zip(spikes.split(BATCH, 1), labels.split(BATCH), strict=True))[:count]


@torch.no_grad()
def _accuracy(network: Network, spikes: torch.Tensor, labels: torch.Tensor) -> float:
    right = network(spikes).argmax(1).cpu() == labels
    return float(right.float().mean())
