"""The examples: they run, they are short, and their pages show their results."""

import ast
import csv
import difflib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_recurrent import imitated

import tritonsyn

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
sys.path[:0] = [str(EXAMPLES), str(ROOT / "bench")]
import compare_digits  # noqa: E402
import cuda_graph  # noqa: E402
import digits  # noqa: E402

SOURCE = (EXAMPLES / "digits.py").read_text(encoding="utf-8")
PAGE = (EXAMPLES / "digits.md").read_text(encoding="utf-8")


def test_an_epoch_on_a_few_digits_moves_delays_within_their_bounds():
    model, before, accuracy = digits.train("delayed", True, 0, epochs=1, pause=2, digits=32)
    delay = model.recurrent.delay.detach()
    assert len(accuracy) == 1 and 0 < accuracy[0] < 1
    assert delay.min() >= 0 and delay.max() <= 32
    assert (delay != before).any()


def test_the_networks_differ_in_their_recurrent_connections_only():
    networks = {}
    for kind in ("fixed", *compare_digits.KINDS):
        torch.manual_seed(0)
        networks[kind] = digits.Network(kind)
    for network in networks.values():
        assert torch.equal(network.inputs.weight, networks["none"].inputs.weight)
        assert torch.equal(network.readout.weight, networks["none"].readout.weight)
    for kind in ("fixed", "undelayed"):
        assert torch.equal(networks[kind].recurrent.weight, networks["delayed"].recurrent.weight)
    assert torch.equal(networks["fixed"].recurrent.delay, networks["delayed"].recurrent.delay)
    assert not networks["undelayed"].recurrent.delay.any()
    assert not networks["none"].recurrent.weight.any()


def test_the_page_tells_how_the_file_is_run():
    commands = re.findall(r"^python (docs/examples/digits\.py.*)$", PAGE, re.MULTILINE)
    assert commands and all((ROOT / command.split()[0]).exists() for command in commands)
    known = set(re.findall(r"\"--(\w+)", SOURCE)) | set(re.findall(r'"(\w+)": \d', SOURCE))
    for option in re.findall(r"--(\w+)", " ".join(re.findall(r"`(.*?)`", PAGE))):
        assert option in known, option


def test_the_table_of_the_page_is_that_of_the_results():
    lines = compare_digits.written()
    assert "\n".join(compare_digits.table(lines)) in PAGE


# -- frameworks -----------------------------------------------------------------------------------

FRAMEWORKS = {"lightning_delays": "pytorch_lightning", "accelerate_delays": "accelerate"}


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    pytest.importorskip(FRAMEWORKS[request.param])
    return importlib.import_module(request.param)


def layer_of(trained):
    return getattr(trained, "layer", trained)


def lines_of(folder):
    """What was logged, of one call after the other."""
    found = []
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open(newline="") as file:
            found += [{k: float(v) for k, v in line.items()} for line in csv.DictReader(file)]
    return found


def saved_batch(folder):
    """Samples in a record of the last checkpoint."""
    last = folder / "last.ckpt"
    if last.exists():
        state = torch.load(last, weights_only=True)["state_dict"]
    else:
        state = importlib.import_module("safetensors.torch").load_file(
            folder / "last" / "model.safetensors"
        )
    (storage,) = (value for key, value in state.items() if key.endswith("current_.storage"))
    return storage.shape[1]


def test_an_example_goes_on_exactly_where_it_stopped(framework, tmp_path, monkeypatch):
    """After a short batch, with which its epochs end."""
    make, batches = framework.patterns.layer, []

    def counted():
        layer = make()
        layer.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
        return layer

    monkeypatch.setattr(framework.patterns, "layer", counted)
    whole = layer_of(framework.train(3, tmp_path / "whole"))
    stopped = layer_of(framework.train(1, tmp_path / "parts"))
    assert saved_batch(tmp_path / "parts") == 200 % 32 == 8
    batches.clear()
    resumed = layer_of(framework.train(3, tmp_path / "parts"))
    assert batches == [*[32] * 6, 8] * 2, "those of the two epochs that were missing"
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in whole.named_parameters():
        assert not torch.equal(stopped.get_parameter(name), value), name
    lines = lines_of(tmp_path / "parts")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for theirs, ours in zip(lines_of(tmp_path / "whole"), lines, strict=True):
        assert theirs == ours


def test_an_example_moves_its_delays_and_logs_them(framework, tmp_path):
    torch.manual_seed(0)
    before = framework.patterns.layer().delay.detach()
    delay = layer_of(framework.train(2, tmp_path)).delay.detach()
    assert (delay - before).abs().mean() > 1
    assert 0 <= delay.min() and delay.max() <= 39
    first, last = lines_of(tmp_path)
    assert last["delay_mean"] == pytest.approx(delay.mean().item())
    assert last["delay_std"] == pytest.approx(delay.std().item())
    assert first["delay_mean"] != last["delay_mean"]
    (picture,) = tmp_path.rglob("delays.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_example_learns_when_called_as_its_page_says(name, tmp_path):
    pytest.importorskip(FRAMEWORKS[name])
    assert "--epochs" in called(name, "--help").stdout
    run = called(name, "--out", str(tmp_path))
    assert re.search(r"epoch 9: 100%", run.stdout + run.stderr, re.IGNORECASE)
    lines, page = lines_of(tmp_path), (EXAMPLES / "frameworks.md").read_text(encoding="utf-8")
    assert lines[-1]["accuracy"] > 0.95
    for column, close in (("accuracy", 0.05), ("delay_mean", 0.3), ("delay_std", 0.3)):
        (row,) = re.findall(rf"^\| {column}.*? \| (.*) \|$", page, re.MULTILINE)
        shown = row.split(" | ")
        assert [line[column] for line in lines] == pytest.approx(list(map(float, shown)), abs=close)


# -- all of them, as their docstrings say ---------------------------------------------------------

INDEX = (EXAMPLES / "index.md").read_text(encoding="utf-8")
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"patterns"})
COMMAND = re.compile(r"^((?:python|torchrun) .*?)  # needs (.*), (\d+ s)$", re.MULTILINE)


def docstring(name):
    return ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")))


def called(name, *options):
    """What the command in the docstring of an example did."""
    program, *words = COMMAND.search(docstring(name))[1].split()
    assert program == "python"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, *words, *options]
    how = {"capture_output": True, "text": True, "env": environment, "cwd": ROOT}
    run = subprocess.run(command, **how)
    assert run.returncode == 0, run.stderr
    return run


def numbers(pattern, text):
    """The groups of the only match of a pattern, as numbers."""
    (found,) = re.findall(pattern, text)
    return [float(each) for each in ([found] if isinstance(found, str) else found)]


@pytest.mark.parametrize("name", NAMES)
def test_the_index_has_the_command_of_an_example(name):
    command, needs, seconds = COMMAND.search(docstring(name)).groups()
    assert f"docs/examples/{name}.py" in command
    assert f"| [`{command}`]({name}.py) | {needs} | {seconds} |" in INDEX


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_on_the_index(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    assert f"]({path.name})" in INDEX


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FRAMEWORKS)))
def test_an_example_has_a_test(name):
    other = (ROOT / "tests" / "test_distributed.py").read_text(encoding="utf-8")
    assert f"test_{name}" in globals() or f'"{name}.py"' in other


@pytest.mark.slow
def test_learn_one_delay():
    out = called("learn_one_delay").stdout
    learned, planted = numbers(r"learned (\S+) ms, planted (\S+) ms", out)
    assert learned == pytest.approx(planted, abs=0.5)
    first, *_, last = re.findall(r"delay +(\S+) ms", out)
    assert abs(float(first) - planted) > 5 > abs(float(last) - planted), "nothing was learned"


def hears_sides(name):
    """The first spike waits for the second by the delay of the nearer ear, and only so."""
    out = called(name).stdout
    (without,) = numbers(r"without delays: (\S+)%", out)
    (learned,) = numbers(r"learned delays: (\S+)%", out)
    assert without < 75 and learned > 95
    for side, lag in (("left", 12), ("right", -12)):
        pattern = rf"neuron {side}: left ear (\S+) ms, right ear (\S+) ms"
        left, right = numbers(pattern, out)
        assert left - right == pytest.approx(lag, abs=1.5)


@pytest.mark.slow
def test_snntorch_layer():
    pytest.importorskip("snntorch")
    hears_sides("snntorch_layer")


@pytest.mark.slow
def test_spikingjelly_layer():
    pytest.importorskip("spikingjelly")
    hears_sides("spikingjelly_layer")


def test_both_libraries_get_the_same_task():
    """The files are alike but for the library."""
    one, other = (
        (EXAMPLES / f"{name}_layer.py").read_text(encoding="utf-8").splitlines()
        for name in ("snntorch", "spikingjelly")
    )
    differing = [line for line in difflib.ndiff(one, other) if line[0] in "+-"]
    assert len(differing) < 25
    assert not any("randint" in line or "Adam" in line for line in differing)


@pytest.mark.slow
def test_digits():
    *_, last = re.findall(r"epoch 10: (\S+)% of the test digits", called("digits").stdout)
    written = compare_digits.last(compare_digits.written(), "delayed", "in order")[0]
    assert float(last) == pytest.approx(written, abs=3)


@pytest.mark.slow
def test_replace_inferno():
    pytest.importorskip("inferno")
    out = called("replace_inferno").stdout
    for name in ("inferno", "tritonsyn"):
        spikes, change = numbers(rf"{name}: (\d+) spikes, weights changed by up to (\S+)", out)
        assert spikes > 100 and change > 1e-3
    assert numbers(r"spikes that differ: (\d+)", out) == [0]
    assert numbers(r"largest difference of a weight: (\S+)", out)[0] < 1e-6


@pytest.mark.slow
def test_cuda_graph():
    """With a GPU the replays of a graph, else the step that would be captured."""
    out = called("cuda_graph").stdout
    assert ("CUDA graph:" in out) == torch.cuda.is_available()
    assert len(re.findall(r": \d+ us each", out)) == 2
    assert numbers(r"largest difference of an output: (\S+)", out)[0] < 1e-5


def test_the_step_of_the_cuda_graph_can_be_captured(monkeypatch, capsys):
    """By what stands for a graph: it raises where a replay could not do the same."""
    for name, value in {"NEURONS": 5, "BATCH": 2, "STEPS": 6, "captured": imitated}.items():
        monkeypatch.setattr(cuda_graph, name, value)
    with tritonsyn.use_backend("triton"):
        cuda_graph.main()
    out = capsys.readouterr().out
    assert numbers(r"largest difference of an output: (\S+)", out)[0] < 1e-5


@pytest.mark.slow
def test_tune_kernel():
    pytest.importorskip("triton")
    out = called("tune_kernel").stdout
    rows = re.findall(r"^ *(\d\S+)  (BLOCK .*)$", out, re.MULTILINE)
    costs = [float(cost) for cost, _ in rows]
    assert len(set(rows)) == 8 and costs == sorted(costs)
    assert costs[0] == 1 and costs[-1] > 1.5
    assert re.findall(r"best: (.*)", out) == [rows[0][1]]


@pytest.mark.slow
def test_export_nir():
    pytest.importorskip("nir")
    out = called("export_nir").stdout
    assert numbers(r"largest current (\S+) nA", out)[0] > 0.5
    assert numbers(r"largest difference (\S+) nA", out)[0] < 1e-5
