"""The comparison of trained networks: the providers compute the same, and the command's rows."""

# ruff: noqa: E402

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "docs"))

import measured
import networks
import oracle
import results
import tasks
import training
from delays import PROVIDERS, Connections, Synapse
from neurons import Neurons, spike
from training import Outcome, Training

from tritonsyn.system import package_version

needs_dcls = pytest.mark.skipif(not importlib.util.find_spec("DCLS"), reason="needs DCLS")
needs_aeon = pytest.mark.skipif(not importlib.util.find_spec("aeon"), reason="needs aeon")
every_provider = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_dcls] * (name == "DCLS")) for name in PROVIDERS]
)
SYNAPSES = {"single": Synapse(7.0, (1.7,)), "double": Synapse(7.0, (4.0, 1.0))}
EACH = [
    pytest.param(
        task, name, marks=[needs_dcls] * (name == "DCLS") + [needs_aeon] * (task == "vowels")
    )
    for task, of in tasks.TASKS.items()
    for name in of.providers
]


def start(kind, delay, longest):
    """Connections of which the second argument makes the delays."""
    torch.manual_seed(0)
    return Connections(torch.randn(5, 4), delay(torch.rand(5, 4)), longest, SYNAPSES[kind])


def formula(kind, connections, x):
    """The outputs in float64, for delays of whole steps."""
    charge, constants = SYNAPSES[kind]
    names = ("time_constant",) if kind == "single" else ("tc_decay", "tc_rise")
    physics = {"spike_charge": charge, **dict(zip(names, constants, strict=True))}
    parts = oracle.components(kind, x, 1.0, physics)
    return oracle.projected(parts, connections.weight.double(), connections.delay.double(), 1.0)


@every_provider
@pytest.mark.parametrize("longest", [0, 6])
@pytest.mark.parametrize("kind", SYNAPSES)
def test_at_whole_steps_all_layers_compute_the_formula(name, longest, kind):
    connections = start(kind, lambda u: (u * longest).round(), longest)
    assert not longest or {0.0, float(longest)} <= set(connections.delay.flatten().tolist())
    layer, x = PROVIDERS[name](connections), torch.rand(12, 3, 4)
    expected = formula(kind, connections, x).float()
    torch.testing.assert_close(layer.sequence(x), expected, rtol=0, atol=1e-5)
    lengths = torch.tensor([12, 5, 9])
    y = layer.sequence(x, lengths)
    for sample, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[:length, sample], expected[:length, sample], rtol=0, atol=1e-5)
        assert not y[length:, sample].any()


@needs_dcls
@pytest.mark.parametrize("kind", SYNAPSES)
def test_between_steps_the_loop_and_dcls_read_the_same_line(kind):
    connections, x = start(kind, lambda u: 6 * u, 6), torch.rand(12, 3, 4)
    dy, found = torch.rand(12, 3, 5), []
    for name, sign in (("loop", 1), ("DCLS", -1)):  # positions count the other way
        layer = PROVIDERS[name](connections)
        y = layer.sequence(x)
        (gradient,) = torch.autograd.grad(y, layer.delay, dy)
        found.append((y, sign * gradient.view(5, 4)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tritonsyn", "loop"])
def test_steps_are_those_of_a_sequence(name):
    layer, x = PROVIDERS[name](start("double", lambda u: 6 * u, 6)), torch.rand(12, 3, 4)
    with layer.steps(12) as step:
        y = torch.stack([step(row) for row in x])
    torch.testing.assert_close(y, layer.sequence(x), rtol=0, atol=1e-5)


@every_provider
def test_delays_stay_in_their_range(name):
    layer = PROVIDERS[name](start("single", lambda u: 6 * u, 6))
    x = torch.rand(12, 3, 4)
    for outside, bound in ((-50.0, 0.0), (50.0, 6.0)):
        with torch.no_grad():
            layer.delay.fill_(-outside if name == "DCLS" else outside)
        layer.clamp_delays_()
        connections = start("single", lambda u, bound=bound: torch.full_like(u, bound), 6)
        expected = formula("single", connections, x).float()
        torch.testing.assert_close(layer.sequence(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recurrent", [False, True])
def test_networks_of_whole_steps_spike_alike(recurrent, monkeypatch):
    """All spikes of the hidden neurons, whoever makes the layer."""
    whole = tasks.drawn

    def drawn(*arguments):
        connections = whole(*arguments)
        return connections._replace(delay=connections.delay.round())

    monkeypatch.setattr(tasks, "drawn", drawn)
    names = [name for name in PROVIDERS if name != "DCLS" or importlib.util.find_spec("DCLS")]
    x, spikes = torch.rand(40, 3, 1), {}
    for name in names if not recurrent else ("tritonsyn", "loop"):
        torch.manual_seed(0)
        network = tasks.pixel_network(PROVIDERS[name], True, 8, recurrent)
        seen = []
        network.readout.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        network(x, None)
        spikes[name] = seen[0]
    assert len(spikes) > 1
    for name, found in spikes.items():
        assert torch.equal(found, spikes["loop"]), name
    assert 0 < spikes["loop"].mean() < 1


def test_neurons_leak_spike_and_start_again():
    x = torch.tensor([0.8, 0.8, 0.0, 0.5, 2.0, 0.9]).view(6, 1, 1)
    spikes = Neurons(0.5, 10.0).run(x).flatten()
    assert spikes.tolist() == [0, 1, 0, 0, 1, 0]
    v = torch.tensor([0.0, 1.5], requires_grad=True)
    spike(v, 2.0).sum().backward()
    torch.testing.assert_close(v.grad, torch.tensor([1 / 9, 1 / 4]))


@pytest.mark.parametrize("task", [pytest.param("vowels", marks=needs_aeon), "rows", "pixels"])
def test_examples_are_what_their_task_says(task):
    learn, test = tasks.TASKS[task].examples(0)
    counts = {"vowels": (270, 370), "rows": (1347, 450), "pixels": (1347, 450)}
    assert (len(learn.labels), len(test.labels)) == counts[task]
    classes = 9 if task == "vowels" else 10
    assert set(learn.labels.tolist()) == set(test.labels.tolist()) == set(range(classes))
    x = tasks.TASKS[task].encode(test.x, torch.Generator().manual_seed(0))
    steps = {"vowels": 29, "rows": 28, "pixels": 80}
    assert x.shape[:2] == (steps[task], len(test.labels))
    if task == "vowels":
        lengths = torch.cat((learn.lengths, test.lengths))
        assert (lengths.min(), lengths.max()) == (7, 29)
        assert all(not x[length:, i].any() for i, length in enumerate(test.lengths))
        frames = torch.cat([x[:n] for x, n in zip(learn.x, learn.lengths, strict=True)])
        torch.testing.assert_close(frames.mean(0), torch.zeros(12), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), EACH)
def test_an_epoch_of_a_few_examples_moves_delays_that_are_learned(task, name, monkeypatch):
    delays = []

    class Watched(training._Epoch):
        def run(self):
            before = [layer.delay.detach().clone() for layer in self.network.layers]
            loss = super().run()
            after = [layer.delay for layer in self.network.layers]
            delays.extend(zip(before, after, strict=True))
            return loss

    monkeypatch.setattr(training, "_Epoch", Watched)
    for kind, moved in (("learned", True), ("none", False)):
        outcome = training.train(Training(task, name, kind, epochs=1, examples=24))
        assert 0 <= outcome.accuracy <= 1 and len(outcome.seconds) == 1
        assert delays and all(moved != torch.equal(*pair) for pair in delays)
        delays.clear()


OUTCOME = Outcome(0.75, [9.0, 1.0, 2.0, 3.0], 0.02, 41.4)


def test_the_first_epoch_counts_only_where_it_is_alone():
    assert OUTCOME.quartiles() == (1.25, 2.0, 2.75)
    assert OUTCOME._replace(seconds=[9.0]).quartiles() == (9.0, 9.0, 9.0)


def test_the_command_records_a_line_for_each_training(tmp_path, monkeypatch, capsys):
    asked, path = [], tmp_path / "networks.csv"

    def trained(training):
        asked.append(training)
        return OUTCOME

    monkeypatch.setattr(networks, "trained_apart", trained)
    options = ["--task", "pixels", "--delays", "learned", "--seed", "3", "--record", str(path)]
    networks.main([*options, "--threads", str(torch.get_num_threads())])
    assert [(t.provider, t.seed) for t in asked] == [("tritonsyn", 3), ("loop", 3)]
    assert {t.epochs for t in asked} == {tasks.TASKS["pixels"].epochs}
    out = capsys.readouterr()
    assert "pixels: DCLS has no recurrent connections" in out.err
    assert "0.7500" in out.out and out.out.count("pixels") == 2
    networks.main([*options, "--epochs", "4", "--examples", "50", "--provider", "loop"])
    first, second = results.read(path, results.NETWORKS).values()
    assert (first["provider"], first["examples"]) == ("tritonsyn", "all")
    assert (second["provider"], second["epochs"], second["examples"]) == ("loop", "4", "50")
    figures = [first[name] for name in ("seconds", "low", "high", "peak_mb")]
    assert figures == ["2", "1.25", "2.75", "41"]
    assert second["package"] == f"torch {package_version('torch')}"
    path.write_text("something else\n")
    with pytest.raises(SystemExit, match="is not a file of results"):
        networks.main(options)


def test_the_help_of_the_command_tells_all_networks(capsys):
    with pytest.raises(SystemExit):
        networks.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"* {name}: {task.about}" in out for name, task in tasks.TASKS.items())


@pytest.mark.slow
def test_a_training_has_a_process_and_memory_of_its_own():
    outcome = training.trained_apart(Training("rows", "loop", epochs=2, examples=64))
    assert len(outcome.seconds) == 2 and 0 <= outcome.others <= 1
    assert outcome.peak_mb is None or 1 < outcome.peak_mb < 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_rises_by_what_is_allocated_and_given_back():
    code = """
import sys; sys.path.insert(0, "bench")
from machine import PeakMemory
before = bytearray(200_000_000); del before
peak = PeakMemory()
during = bytearray(100_000_000); del during
print(peak.megabytes())
"""
    parent = bytearray(300_000_000)  # of which the child knows nothing
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert parent and 95 < float(run.stdout) < 110, run.stderr


def test_seeds_are_one_row_of_the_page():
    found = {
        Training("rows", "loop", epochs=5): OUTCOME,
        Training("rows", "loop", seed=1, epochs=5): Outcome(0.85, [4.0], 0.5, 60.0),
        Training("rows", "loop", "none", epochs=5, examples=64): OUTCOME._replace(peak_mb=None),
    }
    lines = [networks.line(*trained) for trained in found.items()]
    head, rule, *rows = [row for row in measured.networks(lines) if row.startswith("|")]
    assert rows == [
        "| rows | learned | by hand | 80.0 (75.0 to 85.0) | 3 | 60 | 50% | 5 of all |",
        "| rows | none | by hand | 75.0 | 2 |  | 2% | 5 of 64 |",
    ]


def test_headlines_compare_on_one_machine_and_name_each():
    lines = list(results.read(results.FILE).values())
    before = measured.headlines(lines, at_length=False)
    (headline,) = (each for each in measured.HEADLINES if each.label == "one delayed read")
    newest = measured.compare(lines, "cpu", headline.cpu)
    later = {"date": "2099-01-01", "commit": "later"}
    assert measured.headlines([*lines, newest["inferno-ai"].theirs | later], False) == before
    after = measured.headlines([*lines, newest["tritonsyn reference"].ours | later], False)
    assert [row for row in after if row not in before][1].startswith("CPU: ")
    assert "| CPU | one delayed read |  |  |  |" in after
    assert measured.headlines([], at_length=False)[-1] == ""


def test_ratios_are_read_as_they_were_written():
    ratios = {"snnTorch's delay, in steps": 8.13, "DCLS": 0.72, "inferno-ai": 1.2e3}
    text = ", ".join(f"{name} {ratio:.3g}" for name, ratio in ratios.items())
    assert results.ratios_of({"ratios": text}) == ratios
    assert results.ratios_of({"ratios": ""}) == {}
