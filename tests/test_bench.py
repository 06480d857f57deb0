"""The helpers of the benchmarks: right answers, lines of the CSV, the stages of a visit."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import oracle
import peers
import planted_delays

try:
    import probes
except ImportError:  # without Triton there are no kernels
    probes = None
import providers
import recurrent
import results
import table
import timing
import visit
import workloads
from workloads import Project, Read, Scan, Shift, Step

CPU = torch.device("cpu")
TINY = {"batch": 3, "synapses": 5, "record": 4}
ROWS = [
    Step(**TINY, calls=2),
    Step(**TINY, kind="double", inplace=True, calls=2),
    Read(**TINY),
    Read(**TINY, kind="double", shared=True),
    Read(**TINY, shared=True, selectors=2),
    Scan(**TINY, steps=7),
    Scan(**TINY, steps=7, kind="double"),
    Scan(**TINY, steps=7, source="bits", gradients=()),
    Scan(**TINY, steps=7, gradients=("input", "tau")),
    Scan(**TINY, steps=7, source="bool", gradients=(), stateless=True),
    Project(**TINY, steps=7, outputs=2),
    Project(**TINY, steps=7, outputs=2, gradient=True),
    Project(**TINY, steps=7, outputs=2, gradient=True, whole=True),
    Scan(**TINY, steps=7, backward=True),
    Project(**TINY, steps=7, outputs=2, gradient=True, backward=True),
    Shift(**TINY, steps=7),
    Shift(**TINY, steps=7, interp="gaussian"),
]
HERE = [
    providers.Tritonsyn("reference", ("cpu",)),
    *(providers.Strategy(s, "reference", ("cpu",)) for s in ("shift", "gemm", "bits", "events")),
    providers.Inferno(),
    providers.Plain(),
    peers.Dcls(),
    *(provider for provider in peers.PROVIDERS if isinstance(provider, peers.Lags)),
]


@pytest.mark.parametrize(
    "provider, row",
    [
        pytest.param(provider, row, id=f"{provider.name}: {row.name}, {row.size}")
        for provider in HERE
        for row in ROWS
        if provider.offers(row, "cpu")
    ],
)
def test_a_provider_agrees_with_the_oracle(provider, row):
    row = replace(row, dtype=torch.float64 if provider.name != "DCLS" else torch.float32)
    if reason := provider.missing(row):
        pytest.skip(reason)
    inputs = row.inputs(CPU)
    job = provider.job(row, inputs)
    job.reset()
    found = job.finish(job.run())
    assert row.complaint(found, row.expected(inputs)) is None
    wrong = [tensor.clone(memory_format=torch.contiguous_format) for tensor in found]
    wrong[-1].view(-1)[0] += 0.1 * wrong[-1].abs().max()
    assert "error" in row.complaint(tuple(wrong), row.expected(inputs))
    assert row.moved > 0


@pytest.mark.parametrize("kind", workloads.PHYSICS)
def test_taps_weigh_what_a_materialised_read_gives(kind):
    x = torch.rand(8, 2, 3) < 0.5
    weight, delay = torch.randn(4, 3).double(), torch.rand(4, 3).double() * 5
    parts = oracle.components(kind, x, 1.0, workloads.PHYSICS[kind])
    y = oracle.projected(parts, weight, delay, 1.0)
    for t in range(len(x)):
        past = [(c, torch.nn.functional.pad(v[: t + 1], (0, 0, 0, 0, 8, 0))) for c, v in parts]
        read = oracle.delayed(past, delay.T.unsqueeze(0), 1.0)
        torch.testing.assert_close(y[t], torch.einsum("bio,oi->bo", read, weight))


def test_rows_differ_and_their_targets_name_providers_and_rows():
    rows = [(row.name, row.size, row.dtype, row.devices) for row in table.WORKLOADS]
    assert len(set(rows)) == len(rows)
    names = {provider.name for provider in peers.PROVIDERS}
    for row in table.WORKLOADS:
        for target in row.targets:
            assert {target.rival, target.of} <= {"", *names}
            others = [(r.name, r.size) for r in table.WORKLOADS if target.device in r.devices]
            assert (row.name, target.size or row.size) in others
            assert target.device in row.devices


def result(**changes):
    made = results.Result(
        "step", "B=1", "tritonsyn reference", "float32", "cpu", 2.0, 1.5, 2.5, "host", 5, 0.0,
        1.0, "GB/s", None,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_line_with_the_same_key_is_replaced(tmp_path):
    path = tmp_path / "new" / "lines.csv"
    results.write([result(), result(size="B=2")], path)
    results.write([result(milliseconds=3.0)], path)
    lines = results.read(path)
    assert len(lines) == 2
    assert {line["size"]: line["milliseconds"] for line in lines.values()} == {
        "B=1": "3",
        "B=2": "2",
    }
    assert all(set(line) == set(results.FIELDS) for line in lines.values())


def test_a_run_goes_on_with_what_this_machine_has_not_timed(tmp_path):
    path = tmp_path / "lines.csv"
    results.write([result()], path)
    assert results.times_in(path) == {("step", "B=1", "tritonsyn reference", "float32", "cpu"): 2.0}
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    assert results.times_in(path) == {}


def test_targets_are_judged_by_pairs_or_by_another_line():
    least = workloads.faster("cpu", 30, "inferno-ai")
    most = workloads.Target("cpu", 1.3, "copy_", least=False)
    flat = workloads.Target("cpu", 1.1, "", "B=2", least=False)
    lines = [
        result(targets=(least, most, flat), ratios={"inferno-ai": 31.0}),
        result(provider="copy_", milliseconds=1.0),
        result(size="B=2", milliseconds=1.9),
    ]
    said = [str(verdict) for verdict in results.verdicts(lines)]
    assert said == [
        "at least 30x inferno-ai: 31x, reached",
        "at most 1.3x copy_: 2x, missed",
        "at most 1.1x at B=2: 1.05x, reached",
    ]
    known = {("step", "B=1", "copy_", "float32", "cpu"): 4.0}
    assert "0.5x, reached" in str(results.verdicts(lines[:1], known)[1])
    assert "not compared" in str(results.verdicts(lines[:1])[1])


def test_a_call_of_the_host_is_held_against_an_addition():
    lines = [
        result(provider="torch.add", milliseconds=0.001),
        result(milliseconds=0.05),
        result(size="B=2"),
    ]
    assert results.host_table(lines)[1].split()[-2:] == ["50", "50"]
    assert results.host_table(lines[1:]) == []


class FakeEvent:
    """An event on a clock that what is timed moves on."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.clock

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class FakeGraph:
    def replay(self):
        FakeEvent.clock += 1e-4


def test_events_time_one_call_of_many(monkeypatch):
    monkeypatch.setattr(timing.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(timing.torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(timing, "_captured", lambda work: FakeGraph())

    def run():
        FakeEvent.clock += 3.0
        return ()

    jobs = [providers.Job(run), providers.Job(run)]
    timer = timing.on_device(jobs, calls=3)
    assert (timer.method, timer.seconds()) == ("events", pytest.approx(1.0))
    jobs[0].graph = True
    timer = timing.on_device(jobs, calls=5)
    assert timer.method == "graph"
    timer.prepare()
    before = FakeEvent.clock
    assert timer.seconds() == pytest.approx(1e-5)
    assert FakeEvent.clock - before == pytest.approx(2e-3)  # as long as a round has to be


RESULT = results.Result(
    workload="step", size="B=1, N=2", provider="a, b", dtype="float32", device="cpu",
    milliseconds=1.5, low=1.0, high=2.0, timer="host", rounds=3, others=0.0, rate=None, unit="",
    peak_mb=None, ratios={"plain": 2.0},
)  # fmt: skip


def test_results_cut_at_any_byte_keep_the_lines_before(tmp_path):
    path = tmp_path / "results.csv"
    found = [RESULT, replace(RESULT, provider='"quoted"')]
    results.write(found, path)
    whole, lines = path.read_bytes(), list(results.read(path).values())
    assert len(lines) == 2
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = max(whole[:length].count(b"\n") - 1, 0)
        assert list(results.read(path).values()) == lines[:kept]
        assert len(results.times_in(path)) == kept
    path.write_bytes(whole[:-1])
    results.write(found, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"workload,size", b"work,size", "line 1"),
        (b",1.5,", b",,", "line 2"),
        (b",1.5,", b",nan,", "line 2"),
        (b",1.5,", b",", "line 2"),
        (b",host,", b",host,host,", "line 2"),
        (b"step", b"\xff", "0xff"),
    ],
)
def test_damaged_results_are_told(tmp_path, old, new, line):
    path = tmp_path / "results.csv"
    results.write([RESULT, replace(RESULT, provider="other")], path)
    damaged = path.read_bytes().replace(old, new, 1)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"results\.csv is not a file of results: .*{line}"):
        results.write([RESULT], path)
    assert path.read_bytes() == damaged


def stage(name, code, share=0.5, **options):
    return visit.Stage(name, (sys.executable, "-c", code), share, **options)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(visit, "RESERVE", 0.0)
    monkeypatch.setattr(visit, "LEAST", 0.5)
    monkeypatch.setattr(visit, "GRACE", 1.0)


@pytest.fixture
def visits(tmp_path):
    """Begins a visit to the folder; what came of its stages is in ``statuses``."""
    return lambda budget=60.0: visit.Visit(tmp_path / "out", budget, tmp_path / "logs")


def statuses(there):
    return {name: outcome.status for name, outcome in there.outcomes.items()}


def test_a_bad_stage_does_not_stop_the_others(tmp_path, quick, visits):
    stages = (
        stage("slow", "import time; print('began', flush=True); time.sleep(60)", share=0.1),
        stage("broken", "raise SystemExit('it broke')"),
        stage("absent", "", missing=lambda out: "no CUDA device"),
        visit.Stage("unknown", ("there-is-no-such-command",), 0.5),
        stage("good", "print('{seconds} {out}')"),
    )
    there = visits(budget=20.0)
    there.run(stages)
    assert statuses(there) == {
        "slow": "out of time",
        "broken": "failed",
        "absent": "skipped: no CUDA device",
        "unknown": "failed",
        "good": "passed",
    }
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "logs.zip", "summary.json", "summary.md",
    ]  # fmt: skip
    page = (out / "summary.md").read_text()
    assert "it broke" in page and "| slow | out of time |" in page
    assert "began" in json.loads((out / "summary.json").read_text())["stages"]["slow"]["tail"]
    with zipfile.ZipFile(out / "logs.zip") as archive:
        assert archive.read("good.log").decode().split()[-1] == str(out)


def test_a_second_visit_goes_on_with_what_has_not_finished(tmp_path, quick, visits):
    mark = tmp_path / "mark"
    stages = (
        stage("done", f"open({str(mark)!r}, 'a').write('x')"),
        stage("later", ""),
        stage("pictures", f"open({str(mark)!r}, 'a').write('p')", always=True),
    )
    first = visits()
    first.run(stages[:1])
    first.budget = 0.0
    first.run(stages)
    assert statuses(first) == {"done": "passed", "later": "not reached", "pictures": "not reached"}
    second = visits()
    second.run(stages)
    assert set(statuses(second).values()) == {"passed"}
    assert mark.read_text() == "xp"
    visits().run(stages, again=("done",))
    assert mark.read_text() == "xpxp"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b""),
        ("summary.json", b"[]"),
        ("summary.json", b'{"stages": {"smoke": {"status": "passed"}}}'),
        ("summary.json", b"\xff"),
        ("summary.json", 100_000 * b"["),
        ("logs.zip", b"half"),
    ],
    ids=range(6),
)
def test_a_visit_tells_what_it_cannot_go_on_with(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert visit.main(["--out", str(tmp_path), "--budget", "1"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name} is " in error and "move it away" in error
    assert error.count("\n") == 1
    assert (tmp_path / name).read_bytes() == content


def test_a_visit_goes_on_where_the_results_are_damaged(tmp_path, quick, visits):
    there = visits()
    (tmp_path / "out" / "bench.csv").write_bytes(b"something else\n")
    there.run((stage("good", ""),))
    assert statuses(there) == {"good": "passed"}
    assert "bench.csv is not a file of results" in (tmp_path / "out" / "summary.md").read_text()


def test_the_tree_can_be_linked_where_pip_cannot_install_it(tmp_path):
    visit.link(tmp_path)
    assert (tmp_path / "tritonsyn" / "kernels" / "scan.py").exists()
    assert (tmp_path / "tritonsyn" / "__init__.py").exists()


@pytest.mark.skipif(probes is None, reason="needs triton")
@pytest.mark.parametrize("own", [False, True])
def test_probes_read_what_they_say(own, monkeypatch):
    """Toys in the interpreter: sums of all that a program reads, by hand."""
    bench = probes.Bench(CPU, probes.TOY, probes.once)
    size = bench.size
    window, x = bench.window(own)
    tile, programs = torch.arange(size.block), torch.arange(size.grid[0])
    base = programs[:, None, None] * window if own else 0
    out, call = bench.read(own)
    call()
    step = size.block if own else size.grid[0] * size.block
    starts = programs[:, None] * size.block + torch.arange(size.rounds) * step
    assert torch.equal(out, x[base + starts[:, :, None] % window + tile].sum(1).flatten())
    out, call = bench.gather(own)
    call()
    state, total = programs[:, None] * size.block + tile, 0
    state = (state * 747796405 + 1) % 2**32
    for _ in range(size.rounds):
        state = (state * 1664525 + 1013904223) % 2**32
        place = (state >> 8) % window
        total = total + x[place + (base[:, 0] if own else 0)]
    assert torch.equal(out, total.flatten())


@pytest.mark.skipif(probes is None, reason="needs triton")
def test_probes_go_on_with_what_was_not_asked(tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "probes.jsonl", []

    def ask(name):
        def asked_of(bench):
            asked.append(name)
            yield results.Answer(f"{name}?", 2.0, "TB/s")

        return asked_of

    monkeypatch.setattr(probes, "PROBES", {name: ask(name) for name in "ab"})
    bench = probes.Bench(CPU, probes.TOY, probes.once)
    assert not probes.probe(bench, path, -1.0, ("a", "b"))
    assert probes.probe(bench, path, 60.0, ("a",))
    with path.open("a") as file:
        file.write('{"probe": "b", "ans')
    assert probes.probe(bench, path, 60.0, ("a", "b"))
    assert asked == ["a", "b"] and "a?: 2 TB/s" in capsys.readouterr().out
    assert [answers[0].question for answers in results.answers_in(path).values()] == ["a?", "b?"]
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="is not a file of probes: line 1"):
        results.answers_in(path)


def test_a_summary_has_the_answers_of_probes(tmp_path, quick, visits):
    there = visits()
    line = {"probe": "rates", "answers": [["L2 to multiprocessors", 7.9, "TB/s"]]}
    (tmp_path / "out" / "probes.jsonl").write_text(json.dumps(line) + "\n")
    there.run((stage("good", ""),))
    assert "| L2 to multiprocessors | 7.9 TB/s |" in (tmp_path / "out" / "summary.md").read_text()
    (tmp_path / "out" / "probes.jsonl").write_bytes(b"else\n")
    there.summarize()
    assert "is not a file of probes" in (tmp_path / "out" / "summary.md").read_text()


def test_the_host_gets_as_long_as_it_needs(monkeypatch):
    slept = []
    monkeypatch.setattr(timing.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(timing.torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(
        timing.time, "perf_counter", iter([0.0, 0.01] * 3 + [0.0, 9.0] * 2).__next__
    )
    timer = timing.EventTimer([providers.Job(tuple)], 1)
    for _ in range(5):
        timer.seconds()
    assert [cycles / timing._CLOCK for cycles in slept] == pytest.approx(
        [1e-3, 0.02, 0.02, 0.02, 0.2]
    )


def test_the_ways_through_a_recurrent_network_agree():
    size = recurrent.Size(slots=9, batch=2, neurons=5, steps=16, least=7)
    net = recurrent.Network(size)
    for run in (net.plain, net.unrolled, net.ahead):
        net.check(run, net.hand)


def test_a_tape_keeps_as_much_whatever_the_longest_delay_is(capsys):
    recurrent.main(["--only", "memory", "--slots", "2", "5"])
    lines = capsys.readouterr().out.splitlines()
    kept = [float(line.split("|")[3]) for line in lines if "unrolled" in line]
    assert len(kept) == 2 and max(kept) < 1.5 and kept[0] == kept[1]


@pytest.mark.slow
def test_planted_delays_are_found_with_a_spread_that_shrinks_and_not_without():
    ways = {"exact derivative": (0.0, 0.2), "spread 20 to 1 ms": (0.9, 1.0)}
    for way, (least, most) in ways.items():
        found, error = planted_delays.learn("single", way, 0, last=False, drive="spikes")
        assert least <= found <= most
        assert (error < 0.05) == (found > 0.5)
