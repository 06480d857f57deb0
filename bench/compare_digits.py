"""Trains the networks of the example ``digits.py`` with three seeds each, and tells their accuracy.

``python bench/compare_digits.py`` keeps what is trained in ``digits-out/``, and goes on from there.
It writes ``bench/results/digits.csv`` and the table of ``docs/examples/digits.md``;
``python docs/draw_digits.py`` draws the picture.
"""

import argparse
import csv
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch

from tritonsyn.system import write_whole

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "examples"))
import digits  # noqa: E402

OUT = ROOT / "digits-out"
CSV, PAGE = ROOT / "bench" / "results" / "digits.csv", ROOT / "docs" / "examples" / "digits.md"
BEGIN, END = "<!-- begin: table by compare_digits.py -->", "<!-- end: table -->"
KINDS = {"delayed": "learned delays", "undelayed": "no delays", "none": "no recurrence"}
PIXELS = "in order", "permuted"
EPOCHS, PAUSE, SEEDS = 10, 16, (0, 1, 2)

Line = dict[str, str]


class Task(NamedTuple):
    """One training."""

    kind: str
    pixels: str
    seed: int

    @property
    def path(self) -> Path:
        return OUT / f"{self.kind} {self.pixels} {self.seed}.pt".replace(" ", "-")


TASKS = [Task(kind, pixels, seed) for pixels in PIXELS for seed in SEEDS for kind in KINDS]


def perform(task: Task) -> None:
    """Trains on one core, and keeps the result."""
    torch.set_num_threads(1)
    permuted = task.pixels == "permuted"
    model, before, accuracy = digits.train(task.kind, permuted, task.seed, EPOCHS, PAUSE)
    OUT.mkdir(exist_ok=True)
    torch.save({"state": model.state_dict(), "before": before, "accuracy": accuracy}, task.path)


def train_all(tasks: list[Task], jobs: int) -> None:
    """Those that are not in ``digits-out/`` yet, so many at a time."""
    waiting = [task for task in tasks if not task.path.exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(perform, task) for task in waiting]):
            future.result()


def kept() -> list[Line]:
    """What was trained, as lines of ``digits.csv``: accuracies in % after each epoch."""
    found = []
    for task in TASKS:
        if task.path.exists():
            run = torch.load(task.path)
            accuracy = " ".join(f"{100 * value:.1f}" for value in run["accuracy"])
            named = {"network": task.kind, "pixels": task.pixels, "seed": str(task.seed)}
            found.append({**named, "accuracy": accuracy})
    return found


def last(lines: list[Line], kind: str, pixels: str) -> list[float]:
    """The accuracies of a network after the last epoch, for each seed."""
    mine = [line for line in lines if (line["network"], line["pixels"]) == (kind, pixels)]
    return [float(line["accuracy"].split()[-1]) for line in mine]


def written() -> list[Line]:
    """The lines of ``digits.csv``."""
    with CSV.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(lines: list[Line]) -> list[str]:
    """Means and standard deviations over the seeds, as Markdown."""
    found = [f"| recurrent connections | {' | '.join(PIXELS)} |", "|---|---|---|"]
    for kind, name in KINDS.items():
        each = [last(lines, kind, pixels) for pixels in PIXELS]
        cells = [f"{mean(a):.1f} ± {stdev(a):.1f} %" if len(a) > 1 else "-" for a in each]
        found.append(f"| {name} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    train_all(TASKS, parser.parse_args().jobs)
    lines = kept()
    with CSV.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(lines)
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    write_whole(PAGE, "\n".join([head + BEGIN, "", *table(lines), "", END + tail]))


if __name__ == "__main__":
    main()
