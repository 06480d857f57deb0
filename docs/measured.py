"""Writes what was measured and what is calculated into the README and two pages.

``python docs/measured.py [CSV]`` writes the README's table of what is faster than what; into
``performance.md`` the targets and times of each machine, what nobody has measured on such a device
yet, and the table of gates; into ``comparison.md`` the table of trained networks. ``--gates`` first
calculates the gates anew, by arithmetic on the compiled code; ``--check`` writes nothing and fails
where a page is old.
"""

import argparse
import csv
import io
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
PAGE, COMPARISON = HERE / "performance.md", HERE / "comparison.md"
CSV = HERE.parent / "bench" / "results" / "synapses.csv"
GATES = CSV.with_name("gates.csv")
BEGIN, END = "<!-- begin: {} by docs/measured.py -->", "<!-- end: {} -->"

sys.path.insert(0, str(HERE.parent / "bench"))
import results  # noqa: E402
from peers import PROVIDERS  # noqa: E402
from table import WORKLOADS  # noqa: E402

from tritonsyn.system import reason, write_whole  # noqa: E402

Line = dict[str, str]
WORK = "workload", "size", "dtype"
MACHINE = "device", "torch", "triton", "commit", "date"


def kind(device: str) -> str:
    """``cpu`` or ``cuda``, by the name of a device: a CPU's tells its cores."""
    return "cpu" if " cores" in device else "cuda"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(*rows: tuple[object, ...]) -> list[str]:
    """Rows as Markdown, the first of them the head."""
    head, *body = rows
    return [row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in body), ""]


def section(machine: tuple[str, ...], lines: list[Line]) -> list[str]:
    """What was measured on one machine with one commit."""
    device, torch, triton, commit, date = machine
    found = [f"### {device}", ""]
    found += [f"torch {torch}, triton {triton or 'absent'}, commit {commit}, {date}.", ""]
    judged = [line for line in lines if line["targets"]]
    if judged:
        found += table(
            (*WORK, "ms", "targets"),
            *((*(line[n] for n in WORK), line["milliseconds"], line["targets"]) for line in judged),
        )
    names = [p.name for p in PROVIDERS if any(line["provider"] == p.name for line in lines)]
    times: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for line in lines:
        times[tuple(line[name] for name in WORK)][line["provider"]] = line["milliseconds"]
    found += ["Milliseconds a call:", ""]
    found += table(
        (*WORK, *names),
        *((*work, *(of.get(name, "") for name in names)) for work, of in times.items()),
    )
    return found


def unmeasured(lines: list[Line]) -> list[str]:
    """Rows of the benchmarks of which a kind of device has no line."""
    found = []
    for device in ("cpu", "cuda"):
        there = {tuple(ln[name] for name in WORK) for ln in lines if kind(ln["device"]) == device}
        rows = [w for w in WORKLOADS if device in w.devices]
        keys = [(w.name, w.size, str(w.dtype).removeprefix("torch.")) for w in rows]
        missing = [key for key in keys if key not in there]
        where = {"cpu": "a CPU", "cuda": "a GPU"}[device]
        if len(missing) == len(keys):
            found.append(f"* On {where}: none of the {len(keys)} rows of `bench/table.py`.")
        elif missing:
            found.append(f"* On {where}:")
            found += [f"    * {name} ({size}, {dtype})" for name, size, dtype in missing]
    return found or ["* Every row of `bench/table.py` was measured on a CPU and on a GPU."]


def written(lines: list[Line]) -> list[str]:
    """The whole part of the page."""
    machines: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        machines[tuple(line[name] for name in MACHINE)].append(line)
    found = ["## Recorded", ""]
    if not machines:
        found += ["Nothing has been recorded yet.", ""]
    for machine, those in machines.items():
        found += section(machine, those)
    return [*found, "### Not recorded", "", *unmeasured(lines)]


# -- gates ----------------------------------------------------------------------------------------

VISIT = "NVIDIA H100 80GB HBM3", "4ebddb2"
"""The device and the commit of the figures that stand beside the calculated ones."""
_LAYER = "delayed linear, {}, single", "T=100, B=256, I=256, O=256, K={}, spikes=0.05"
_WHOLE = (
    "delayed linear at whole steps, {}, single",
    "T=1000, B=64, I=256, O=256, K={}, spikes=0.05",
)
_LONG = "T=1000, B=64, N=1024, K=1"
_STEP = "step, streaming, single", "B=128, N=4096, K={}"
_WAYS = {False: "forward", True: "forward and backward"}
MEASURED = {
    "step, K=26": (_STEP[0], _STEP[1].format(26)),
    "step, K=1024": (_STEP[0], _STEP[1].format(1024)),
    "step, flat in K": (_STEP[0], _STEP[1].format(1024)),
    "exp_scan from bits": ("exp_scan from bits, single", _LONG),
    "exp_scan from bool": ("exp_scan from bool, single", _LONG),
    "scan, gradients to input and tau": ("sequence with gradient to input and tau, single", _LONG),
    "the same against accelerated-scan": ("sequence with gradient to input and tau, single", _LONG),
    "delayed layer, shifted sum": (_LAYER[0].format("forward"), _LAYER[1].format(26)),
    "forward and backward, flat in K": (_LAYER[0].format(_WAYS[True]), _LAYER[1].format(252)),
    **{
        f"against DCLS, K={k}{', both ways' if both else ''}": (
            _WHOLE[0].format(_WAYS[both]),
            _WHOLE[1].format(k),
        )
        for k in (26, 62, 252)
        for both in (False, True)
    },
}
"""The row of the benchmarks that measures the call of a gate."""
FIELDS = ("gate", "target", "milliseconds", "rival", "ratio", "reached", "operations", "triton")


def calculated() -> str:
    """The gates as CSV, by arithmetic on the code that this Triton compiles."""
    import triton

    from tritonsyn.workbench.gates import judge

    text = io.StringIO()
    out = csv.DictWriter(text, FIELDS, lineterminator="\n")
    out.writeheader()
    for verdict in judge():
        numbers = verdict.outcome.milliseconds, verdict.rival, verdict.ratio
        values = [f"{number:.4g}" for number in numbers]
        said = "reached" if verdict.reached else "missed"
        count = len(verdict.outcome.operations)
        row = (verdict.gate.name, verdict.gate.target, *values, said, count, triton.__version__)
        out.writerow(dict(zip(FIELDS, row, strict=True)))
    return text.getvalue()


def gates(lines: list[Line], found: list[Line]) -> list[str]:
    """The table of the gates: what is calculated now, and what was measured then."""
    there = {
        (line["workload"], line["size"], line["provider"]): line["milliseconds"]
        for line in lines
        if (line["device"], line["commit"]) == VISIT and line["dtype"] == "float32"
    }
    rows: list[tuple[object, ...]] = [
        ("gate", "target", "ms, calculated", "ratio", "ms, measured before")
    ]
    for line in found:
        place = MEASURED.get(line["gate"], ("", ""))
        ratio = f"{line['ratio']}x, {line['reached']}"
        before = there.get((*place, "tritonsyn triton"), "")
        rows.append((line["gate"], line["target"], line["milliseconds"], ratio, before))
    versions = ", ".join(sorted({line["triton"] for line in found}))
    title = f"Calculated for sm_90 with triton {versions}; the last column is of commit {VISIT[1]}."
    return ["", title, "", *table(*rows)]


# -- in short -------------------------------------------------------------------------------------

MACHINES = {"cpu": ("CPU", "tritonsyn reference"), "cuda": ("H100", "tritonsyn triton")}
"""What a kind of device is called, and what of tritonsyn runs there."""
IN_COLUMNS = {"inferno-ai": "inferno-ai", "plain PyTorch": "a PyTorch loop"}
OTHERS = {
    "torch.compile": "the loop compiled",
    "snntorch": "snnTorch",
    "snnTorch's delay, in steps": "snnTorch in steps",
    "snnTorch's delay, a sequence": "snnTorch at once",
    "accelerated-scan": "accelerated-scan",
    "DCLS": "DCLS",
}
"""The providers that tritonsyn is compared with, and what they are called."""


class Headline(NamedTuple):
    """Work that tritonsyn and others were timed on: its rows of the benchmarks, by device."""

    label: str
    cpu: tuple[str, str] | None = None
    cuda: tuple[str, str] | None = None


_TRAINED, _TAU = _LAYER[0].format(_WAYS[True]), "sequence with gradient to input and tau, single"
_READ = "current_at, per synapse, single", "B=128, N=4096, K=21"
_SEQUENCE = "sequence with gradient to input, single", "T=500, B=16, N=256, K={}"
HEADLINES = (
    Headline(
        "one step, `inplace=True`", (_STEP[0], _STEP[1].format(21)), (_STEP[0], _STEP[1].format(26))
    ),
    Headline("one step", ("step, default, single", _STEP[1].format(21))),
    Headline("one delayed read", _READ, _READ),
    Headline("a sequence, forward and backward", *[(_SEQUENCE[0], _SEQUENCE[1].format(21))] * 2),
    Headline("the same without a past to read", *[(_SEQUENCE[0], _SEQUENCE[1].format(1))] * 2),
    Headline("a longer sequence, gradient to the time constant too", None, (_TAU, _LONG)),
    Headline(
        "a delayed dense layer, forward and backward",
        (_TRAINED, "T=50, B=32, I=140, O=128, K=26, spikes=0.05"),
        (_TRAINED, _LAYER[1].format(26)),
    ),
    Headline(
        "a delayed dense layer, longer sequences, whole steps up to 25",
        None,
        MEASURED["against DCLS, K=26, both ways"],
    ),
    Headline(
        "a delayed dense layer, longer sequences, whole steps up to 251",
        None,
        MEASURED["against DCLS, K=252, both ways"],
    ),
    Headline(
        "a delay of a signal, forward and backward",
        ("delayed signal, linear, forward and backward", "T=250, B=64, N=256, K=26"),
    ),
)


class Comparison(NamedTuple):
    """tritonsyn and another provider at the same work on the same machine."""

    ours: Line
    theirs: Line

    @property
    def times_as_fast(self) -> str:
        """The median over pairs of rounds where they were timed in turn, else of the medians."""
        medians = float(self.theirs["milliseconds"]) / float(self.ours["milliseconds"])
        times = results.ratios_of(self.ours).get(self.theirs["provider"], medians)
        return f"{times:.0f}" if times >= 10 else f"{times:.2g}"


def compare(lines: list[Line], device: str, work: tuple[str, str] | None) -> dict[str, Comparison]:
    """With each provider that was timed there, by the newest measurements on one machine."""
    there = [
        line
        for line in lines
        if (line["workload"], line["size"]) == work
        and (line["dtype"], kind(line["device"])) == ("float32", device)
    ]
    mine = [line for line in there if line["provider"] == MACHINES[device][1]]
    ours = max(reversed(mine), key=lambda line: line["date"], default={})
    beside = [line for line in there if all(line[name] == ours.get(name) for name in MACHINE)]
    return {line["provider"]: Comparison(ours, line) for line in beside}


def headlines(lines: list[Line], at_length: bool) -> list[str]:
    """How many times as fast tritonsyn is; ``at_length`` with sizes and its times."""
    head = ("size", "tritonsyn, ms") if at_length else ()
    rows: list[tuple[object, ...]] = [("on", "work", *head, *IN_COLUMNS.values(), "others")]
    machines: dict[str, None] = {}  # each once, in the order of the rows
    for device, (name, _) in MACHINES.items():
        for headline in HEADLINES:
            found = compare(lines, device, getattr(headline, device))
            if not found:
                continue
            ours = next(iter(found.values())).ours
            ratios = [found[n].times_as_fast if n in found else "" for n in IN_COLUMNS]
            others = [f"{w} {found[n].times_as_fast}" for n, w in OTHERS.items() if n in found]
            sizes = (ours["size"], ours["milliseconds"]) if at_length else ()
            rows.append((name, headline.label, *sizes, *ratios, ", ".join(others)))
            versions = f"torch {ours['torch']}, commit {ours['commit']}"
            machines[f"{name}: {ours['device']}, {ours['date']}, {versions}."] = None
    return ["", *table(*rows), *machines, ""]


# -- networks -------------------------------------------------------------------------------------

HEAD = (
    "network", "delays", "layers", "accuracy, %", "s an epoch", "peak MB", "others",
    "epochs of examples",
)  # fmt: skip
LAYERS = {"tritonsyn": "tritonsyn", "DCLS": "DCLS", "loop": "by hand"}


def networks(lines: list[Line]) -> list[str]:
    """The trainings of each machine, seeds together."""
    machines: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        machines[tuple(line[name] for name in MACHINE)].append(line)
    found = [""]
    for (device, _, triton, commit, date), those in machines.items():
        packages = ", ".join(dict.fromkeys(line["package"] for line in those))
        found += [f"{device}; commit {commit}, {date};", f"{packages}, triton {triton}.", ""]
        trained: dict[tuple[str, ...], list[Line]] = defaultdict(list)
        for line in those:
            trained[line["task"], line["delays"], line["provider"]].append(line)
        found += table(HEAD, *(network(*of, seeds) for of, seeds in trained.items()))
    return found


def network(task: str, delays: str, provider: str, seeds: list[Line]) -> tuple[object, ...]:
    """A row: means and ranges of the accuracies, medians of the times, the largest of the rest."""
    right = [100 * float(line["accuracy"]) for line in seeds]
    spread = f" ({min(right):.1f} to {max(right):.1f})" if len(right) > 1 else ""
    seconds = median(float(line["seconds"]) for line in seeds)
    peak = max((float(line["peak_mb"]) for line in seeds if line["peak_mb"]), default=None)
    busy = max(float(line["others"]) for line in seeds)
    learned = {f"{line['epochs']} of {line['examples']}" for line in seeds}
    return (
        task, delays, LAYERS[provider], f"{mean(right):.1f}{spread}", f"{seconds:.3g}",
        "" if peak is None else f"{peak:.0f}", f"{busy:.0%}", "; ".join(sorted(learned)),
    )  # fmt: skip


# -- pages ----------------------------------------------------------------------------------------


def replaced(page: str, name: str, part: list[str]) -> str:
    """The page with another part between two marks."""
    before, begin, rest = page.partition(BEGIN.format(name))
    _, end, after = rest.partition(END.format(name))
    if not (begin and end):
        marks = f"{BEGIN.format(name)} and {END.format(name)}"
        raise ValueError(f"a page has no part between {marks}")
    middle = "\n".join(["", *part, ""])
    return f"{before}{begin}{middle}{end}{after}"


def rewritten(page: str, path: Path = CSV, gates_path: Path = GATES) -> str:
    """The page with the tables of these files."""
    lines = list(results.read(path).values())
    with gates_path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    page = replaced(page, "comparisons", headlines(lines, at_length=True))
    page = replaced(page, "gates", gates(lines, found))
    return replaced(page, "times", ["", *written(lines), ""])


def introduced(page: str) -> str:
    """The README with its table."""
    return replaced(page, "headlines", headlines(list(results.read(CSV).values()), at_length=False))


def compared(page: str) -> str:
    """The page with the table of networks."""
    lines = results.read(results.NETWORKS_FILE, results.NETWORKS)
    return replaced(page, "networks", networks(list(lines.values())))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, default=CSV, help="the benchmarks' results")
    parser.add_argument("--gates", action="store_true", help="calculate the gates anew")
    parser.add_argument("--check", action="store_true", help="fail where the page is old")
    given = parser.parse_args(arguments)
    try:
        if given.gates:
            write_whole(GATES, calculated())
        pages = {README: introduced, PAGE: partial(rewritten, path=given.csv), COMPARISON: compared}
        for path, write in pages.items():
            page = path.read_text(encoding="utf-8")
            new = write(page)
            if given.check:
                if new != page:
                    sys.exit(f"{path} is old: run python docs/measured.py")
            else:
                write_whole(path, new)
                print(path)
    except (OSError, ValueError) as error:
        sys.exit(reason(error))


if __name__ == "__main__":
    main(sys.argv[1:])
