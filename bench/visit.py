"""A visit to a machine with a GPU, in one command.

``python bench/visit.py --out DIR --budget 540``

Needs no network: the package is installed from this tree into a folder of its own, and what the
machine lacks is skipped. Runs the stages below, the most valuable first, each with a part of the
time; one that fails or runs out of time does not stop the others. ``DIR`` is left with few files:
``summary.md``, ``summary.json``, ``probes.jsonl``, ``bench.csv``, pictures, and ``logs.zip`` with
everything that was printed. A second visit to the same folder goes on with the stages that did not
finish.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from results import Answer, answers_in, read  # noqa: E402

from tritonsyn.system import read_json, reason, write_whole, written_whole  # noqa: E402

RESERVE = 10.0
"""Seconds kept for the summary."""
LEAST = 5.0
"""Seconds under which no stage is started."""
GRACE = 10.0
"""Seconds in which an interrupted stage may say what it has found."""
UNFINISHED = 75
"""What the benchmarks exit with where they have more to do."""
FINISHED = ("passed", "failed")
SHOWN = ("environment", "device", "arithmetic")
"""Stages of which the summary shows the end of the output, however they went."""

Reason = str | None


def needs_nothing(out: Path) -> Reason:
    """For stages that run everywhere."""
    return None


def needs_gpu(out: Path) -> Reason:
    """Why the kernels cannot run here; None if they can."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def needs_sanitizer(out: Path) -> Reason:
    """The same for ``compute-sanitizer``."""
    return needs_gpu(out) or (
        None if shutil.which("compute-sanitizer") else "no compute-sanitizer on this machine"
    )


def needs_tune(out: Path) -> Reason:
    """The same for the sweep over launch settings."""
    if reason := needs_gpu(out):
        return reason
    there = any((ROOT / "tritonsyn").glob("cli/tune.py"))
    return None if there else "tritonsyn has no command `tune`"


def needs_compiler(out: Path) -> Reason:
    """The same for what only compiles."""
    return None if importlib.util.find_spec("triton") else "no Triton"


def needs_figures(out: Path) -> Reason:
    """The same for the pictures."""
    return None if (out / "bench.csv").exists() else "no bench.csv"


@dataclass(frozen=True)
class Stage:
    """One command."""

    name: str
    command: tuple[str, ...]
    """With {python}, {root}, {out}, {logs}, and {seconds}, a little under what it may take."""
    share: float
    """Part of the budget that it may take."""
    missing: Callable[[Path], Reason] = needs_nothing
    environment: dict[str, str] = field(default_factory=dict)
    kept: float = 0.0
    """Seconds that the stages before it leave to it."""
    always: bool = False
    """Run it in every visit: what it shows may have grown."""


# -P: not the working folder's tritonsyn, should there be one, but the installed one.
_PYTEST = (
    "{python}",
    "-P",
    "-m",
    "pytest",
    "-c",
    "{root}/pyproject.toml",
    "-p",
    "no:cacheprovider",
)
_BENCH = (
    *_PYTEST, "{root}/bench", "-q", "--on=cuda", "--record={out}/bench.csv", "--resume",
    "--seconds=0.6", "--deadline={seconds}", "--benchmark-columns=median,iqr,rounds",
)  # fmt: skip
_SIDE_BY_SIDE = ("-n", "4") if importlib.util.find_spec("xdist") else ()
_CLI = ("{python}", "-P", "-c", "from tritonsyn.cli import main; raise SystemExit(main())")
_SMOKE = ("{python}", "{root}/bench/smoke.py")
_SANITIZER = ("compute-sanitizer", "--error-exitcode", "1", "--tool")

STAGES = (
    Stage("environment", (*_CLI, "info"), 0.06),
    Stage("device", ("nvidia-smi",), 0.03, needs_gpu),
    Stage("smoke", _SMOKE, 0.15, needs_gpu),
    Stage(
        "probes",
        (
            "{python}",
            "-P",
            "{root}/bench/probes.py",
            "--out={out}/probes.jsonl",
            "--deadline={seconds}",
        ),
        0.12,
        needs_gpu,
    ),
    Stage("gpu-tests", (*_PYTEST, "{root}/tests", "-q", "-m", "gpu"), 0.15, needs_gpu),
    Stage(
        "bench-gates",
        (*_BENCH, "--only=gates", "--benchmark-json={logs}/gates.json"),
        0.4,
        needs_gpu,
    ),
    Stage("tests", (*_PYTEST, "{root}/tests", "-q", *_SIDE_BY_SIDE), 0.25, needs_gpu),
    Stage(
        "memcheck",
        (*_SANITIZER, "memcheck", *_SMOKE),
        0.12,
        needs_sanitizer,
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # else it sees one large allocation
    ),
    Stage("arithmetic", (*_CLI, "check", "--gates"), 0.15, needs_compiler),
    Stage("racecheck", (*_SANITIZER, "racecheck", *_SMOKE), 0.08, needs_sanitizer),
    Stage("tune", (*_CLI, "tune", "--out", "{logs}/tune"), 0.12, needs_tune),
    Stage(
        "bench-rest", (*_BENCH, "--only=rest", "--benchmark-json={logs}/rest.json"), 1.0, needs_gpu
    ),
    Stage(
        "pictures",
        ("{python}", "{root}/docs/draw_bench.py", "{out}/bench.csv", "{out}"),
        0.1,
        needs_figures,
        kept=15.0,
        always=True,
    ),
)


@dataclass
class Outcome:
    """What came of a stage."""

    status: str
    """``passed``, ``failed``, ``out of time``, ``not reached`` or ``skipped: ...``."""
    seconds: float = 0.0
    tail: str = ""
    """The end of what it printed."""

    @property
    def finished(self) -> bool:
        """Whether another visit need not run it again."""
        return self.status in FINISHED


class Visit:
    """A folder for results, and what came of the stages so far."""

    def __init__(self, out: Path, budget: float, logs: Path) -> None:
        self.out, self.logs, self.budget = out, logs, budget
        self._start = time.monotonic()
        self.environment = dict(os.environ)
        self.outcomes: dict[str, Outcome] = {}
        self.notes: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        if (out / "summary.json").exists():
            self.outcomes = outcomes_in(out / "summary.json")
        if (out / "logs.zip").exists():
            try:
                shutil.unpack_archive(out / "logs.zip", logs)
            except (shutil.ReadError, zipfile.BadZipFile, zlib.error, EOFError):
                raise ValueError(f"{out / 'logs.zip'} is damaged; move it away") from None

    @property
    def left(self) -> float:
        """Seconds left for stages."""
        return self.budget - RESERVE - (time.monotonic() - self._start)

    def run(self, stages: tuple[Stage, ...], again: tuple[str, ...] = ()) -> None:
        """Runs the stages that have not finished, and those named again."""
        for place, stage in enumerate(stages):
            before = self.outcomes.get(stage.name)
            due = stage.always or stage.name in again
            if before is not None and before.finished and not due:
                print(f"{stage.name}: {before.status} in an earlier visit", flush=True)
                continue
            later = sum(other.kept for other in stages[place + 1 :])
            self.outcomes[stage.name] = self._outcome(stage, self.left - later)
            outcome = self.outcomes[stage.name]
            print(f"{stage.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)
            self.summarize()

    def _outcome(self, stage: Stage, left: float) -> Outcome:
        reason = stage.missing(self.out)
        if reason:
            return Outcome(f"skipped: {reason}")
        limit = min(stage.share * self.budget, left)
        if limit < LEAST:
            return Outcome("not reached")
        log = self.logs / f"{stage.name}.log"
        start = time.monotonic()
        code = run(self.filled(stage.command, limit), limit, log, self._variables(stage))
        late = dict.fromkeys((None, UNFINISHED), "out of time")
        status = {**late, 0: "passed"}.get(code, "failed")
        return Outcome(status, round(time.monotonic() - start, 1), tail(log))

    def filled(self, command: tuple[str, ...], limit: float) -> list[str]:
        """The command for this visit."""
        names = {
            "python": sys.executable, "root": str(ROOT), "out": str(self.out),
            "logs": str(self.logs), "seconds": f"{max(limit - GRACE, 1):.0f}",
        }  # fmt: skip
        return [part.format(**names) for part in command]

    def _variables(self, stage: Stage) -> dict[str, str]:
        return {**self.environment, **stage.environment}

    # -- the package ----------------------------------------------------------------------------

    def install(self) -> None:
        """Makes ``tritonsyn`` of this tree importable for the stages, without a network."""
        site, tree = self.logs.parent / "site", self.logs.parent / "tree"
        tree.mkdir(exist_ok=True)
        for name in ("tritonsyn", "kernels"):
            shutil.copytree(ROOT / name, tree / name, symlinks=True, dirs_exist_ok=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        command = (
            "{python}", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--no-index", "--upgrade", "--target", str(site), str(tree),
        )  # fmt: skip
        code = run(self.filled(command, 90), 90, self.logs / "install.log", self.environment)
        if code != 0:
            self.notes.append("pip could not install the tree, so it was linked instead")
            link(site)
        before = self.environment.get("PYTHONPATH")
        self.environment["PYTHONPATH"] = os.pathsep.join([str(site), *([before] if before else [])])

    # -- the summary ----------------------------------------------------------------------------

    def summarize(self) -> None:
        """Writes the summary and packs the logs."""
        lines = self._bench_lines()
        stages = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        found = {"stages": stages, "notes": self.notes, "bench": lines}
        write_whole(self.out / "summary.json", json.dumps(found, indent=1))
        write_whole(self.out / "summary.md", self._page(lines))
        with written_whole(self.out / "logs.zip") as beside:
            os.replace(shutil.make_archive(str(beside), "zip", self.logs), beside)

    def _bench_lines(self) -> list[dict[str, str]]:
        """The lines of the benchmarks' CSV; none, with a note, where it cannot be read."""
        try:
            return list(read(self.out / "bench.csv").values())
        except (OSError, ValueError) as error:
            self.notes = list(dict.fromkeys([*self.notes, reason(error)]))
            return []

    def _answers(self) -> list[Answer]:
        """What the probes have found; none, with a note, where that cannot be read."""
        try:
            found = answers_in(self.out / "probes.jsonl")
        except (OSError, ValueError) as error:
            self.notes = list(dict.fromkeys([*self.notes, reason(error)]))
            return []
        return [answer for answers in found.values() for answer in answers]

    def _page(self, lines: list[dict[str, str]]) -> str:
        answers = self._answers()
        page = ["# Visit", "", "| stage | outcome | s |", "|---|---|---|"]
        page += [f"| {name} | {o.status} | {o.seconds:g} |" for name, o in self.outcomes.items()]
        page += ["", *self.notes, "", "## Probes", "", "| question | found |", "|---|---|"]
        page += [f"| {a.question} | {a.value:.4g} {a.unit} |" for a in answers]
        page += ["", "## Targets", ""]
        page += ["| workload | size | dtype | ms | target |", "|---|---|---|---|---|"]
        for line in lines:
            if line["targets"]:
                what = (line[name] for name in ("workload", "size", "dtype", "milliseconds"))
                page.append(f"| {' | '.join(what)} | {line['targets']} |")
        page += ["", "## Times", "", "| workload | size | dtype | provider | ms | rate |"]
        page.append("|---|---|---|---|---|---|")
        for line in lines:
            what = (line[name] for name in ("workload", "size", "dtype", "provider"))
            rate = f"{line['rate']} {line['unit']}"
            page.append(f"| {' | '.join(what)} | {line['milliseconds']} | {rate} |")
        for name, outcome in self.outcomes.items():
            if outcome.status in ("failed", "out of time") or name in SHOWN:
                page += ["", f"## {name}: {outcome.status}", "", "```", outcome.tail, "```"]
        return "\n".join(page) + "\n"


def run(command: list[str], limit: float, log: Path, environment: dict[str, str]) -> int | None:
    """The exit status of a command, whose output goes into ``log``; None if it ran too long."""
    with log.open("w", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        try:
            process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            print(error, file=file)
            return 127
        for patience, stop in ((limit, signal.SIGINT), (GRACE, signal.SIGKILL)):
            try:
                code = process.wait(patience)
                return code if stop == signal.SIGINT else None
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, stop)
        process.wait()
        return None


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def link(site: Path) -> None:
    """The packages of the tree as links: ``tritonsyn.kernels`` is the folder ``kernels``."""
    package = site / "tritonsyn"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in (*(ROOT / "tritonsyn").iterdir(), ROOT / "kernels"):
        target = package / source.name
        if not target.is_symlink():
            target.symlink_to(source)


def outcomes_in(path: Path) -> dict[str, Outcome]:
    """What came of the stages of an earlier visit; ``ValueError`` for a file of something else."""
    try:
        return {
            name: Outcome(str(o["status"]), float(o["seconds"]), str(o["tail"]))
            for name, o in read_json(path)["stages"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no summary of a visit: {why:.200}; move it away") from None


def main(argv: list[str] | None = None) -> int:
    """Runs a visit; 0 if no stage failed or ran out of time, 2 where it could not go on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all of it (540)")
    parser.add_argument(
        "--again", nargs="*", metavar="STAGE", help="run these again, or all if none is named"
    )
    parser.add_argument(
        "--commit", default="", help="what this tree is, where it is not a checkout"
    )
    arguments = parser.parse_args(argv)
    names = tuple(stage.name for stage in STAGES)
    again = () if arguments.again is None else tuple(arguments.again) or names
    if unknown := set(again) - set(names):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    try:
        return visited(arguments, again)
    except (OSError, ValueError) as error:
        print(reason(error), file=sys.stderr)
        return 2


def visited(arguments: argparse.Namespace, again: tuple[str, ...]) -> int:
    """Runs the stages; the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        visit = Visit(arguments.out.resolve(), arguments.budget, Path(scratch, "logs"))
        visit.environment.setdefault("TRITONSYN_COMMIT", arguments.commit)
        visit.install()
        visit.run(STAGES, again)
        visit.summarize()
        bad = [n for n, o in visit.outcomes.items() if o.status in ("failed", "out of time")]
    print(f"{arguments.out / 'summary.md'}", *(f"{name} did not pass" for name in bad), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
