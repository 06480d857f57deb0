"""Writes what the benchmarks' CSV has into ``performance.md``: ``python docs/measured.py [CSV]``.

For each machine the targets and the times, and what nobody has measured on such a device yet.
"""

import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "performance.md"
CSV = HERE.parent / "bench" / "results" / "synapses.csv"
BEGIN, END = "<!-- begin: written by docs/measured.py -->", "<!-- end -->"

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


def main(arguments: list[str]) -> None:
    path = Path(arguments[0]) if arguments else CSV
    try:
        lines = list(results.read(path).values())
        page = PAGE.read_text(encoding="utf-8")
        before, begin, rest = page.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"{PAGE} has no part between {BEGIN} and {END}")
        middle = "\n".join(["", "", *written(lines), "", ""])
        write_whole(PAGE, f"{before}{BEGIN}{middle}{END}{after}")
    except (OSError, ValueError) as error:
        sys.exit(reason(error))
    print(PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
