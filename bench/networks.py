"""Real networks, trained with tritonsyn, with DCLS and with a loop written by hand.

``python bench/networks.py`` trains every network with every provider, each in a fresh process, and
prints a table; what it is at is told on stderr. It takes eight minutes on two quiet cores.

* **accuracy**: the part of the test examples that are told rightly after the last epoch;
* **s an epoch**: the median over the epochs but the first, and the quartiles;
* **peak MB**: how far the process's memory rises above what it held before the first epoch;
* **others**: the part of the machine that other processes used meanwhile. Distrust times where
  that is more than a few percent.

Networks, neurons, first weights and delays, batches, optimiser and seeds are the same for all
providers. The networks:

{tasks}

With ``--record`` the figures go into ``bench/results/networks.csv``, after each training, and then
``python docs/measured.py`` writes the table of ``docs/comparison.md``. To try it:

    python bench/networks.py --task rows --provider tritonsyn loop --epochs 2
"""

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from delays import PROVIDERS
from machine import device_name
from results import NETWORKS, NETWORKS_FILE, columns, put, versions
from tasks import TASKS
from training import Outcome, Training, tell, trained_apart

from tritonsyn.system import package_version, reason

DELAYS = "learned", "none"
SHOWN = ("task", "provider", "delays", "seed", "accuracy", "seconds", "low", "high", "peak_mb",
         "others")  # fmt: skip

Line = dict[str, str]


def line(training: Training, outcome: Outcome) -> Line:
    """The fields of a training, where it was done and what it gave."""
    package = PROVIDERS[training.provider].package
    low, median, high = outcome.quartiles()
    return {
        "task": training.task,
        "provider": training.provider,
        "delays": training.delays,
        "seed": str(training.seed),
        "device": device_name("cpu"),
        **versions(),
        "date": datetime.date.today().isoformat(),
        "package": f"{package} {package_version(package)}",
        "epochs": str(training.epochs),
        "examples": str(training.examples or "all"),
        "accuracy": f"{outcome.accuracy:.4f}",
        "seconds": f"{median:.4g}",
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "others": f"{outcome.others:.2f}",
        "peak_mb": "" if outcome.peak_mb is None else f"{outcome.peak_mb:.0f}",
    }


def trainings(given: argparse.Namespace) -> Iterator[Training]:
    """What is asked for, providers in turn; what one of them cannot do is told and left out."""
    for task in given.task:
        for delays in given.delays:
            for seed in given.seed:
                for provider in given.provider:
                    if provider in TASKS[task].providers:
                        epochs = given.epochs or TASKS[task].epochs
                        plan = task, provider, delays, seed, epochs, given.examples, given.threads
                        yield Training(*plan)
                    else:
                        tell(f"{task}: {provider} has no recurrent connections")


def parser() -> argparse.ArgumentParser:
    """The options."""
    tasks = "\n".join(f"* {name}: {task.about}" for name, task in TASKS.items())
    first, _, rest = str(__doc__).replace("{tasks}", tasks).partition("\n")
    how = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=first, epilog=rest, formatter_class=how)
    add = found.add_argument
    add("--task", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK", help="networks (all)")
    add("--provider", nargs="+", choices=PROVIDERS, default=[*PROVIDERS], metavar="PROVIDER",
        help=f"of {', '.join(PROVIDERS)} (all)")  # fmt: skip
    add("--delays", nargs="+", choices=DELAYS, default=[*DELAYS], metavar="DELAYS",
        help=f"of {', '.join(DELAYS)} (both)")  # fmt: skip
    add("--seed", nargs="+", type=int, default=[0, 1], help="of weights, delays and batches (0 1)")
    add("--epochs", type=int, help="passes through the examples (those of the task)")
    add("--examples", type=int, help="learn from the first so many (all)")
    add("--threads", type=int, default=1, help="of PyTorch (1)")
    where = f"keep the figures as CSV, in bench/results/{NETWORKS_FILE.name} if none is named"
    add("--record", nargs="?", type=Path, const=NETWORKS_FILE, metavar="FILE", help=where)
    return found


def main(argv: list[str] | None = None) -> None:
    """Trains, prints the table, and keeps the figures if asked to."""
    given = parser().parse_args(argv)
    torch.set_num_threads(given.threads)  # which the name of the device tells
    found = []
    for training in trainings(given):
        found.append(line(training, trained_apart(training)))
        if given.record is not None:
            try:
                put(found[-1:], given.record, NETWORKS)
            except (OSError, ValueError) as error:
                sys.exit(reason(error))
    rows = [SHOWN, *(tuple(of[name] for name in SHOWN) for of in found)]
    print("\n".join(columns(rows)))
    print(f"\ntorch {torch.__version__}, {device_name('cpu')}")


if __name__ == "__main__":
    main()
