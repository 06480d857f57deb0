"""The examples: they run, they are short, and their pages show their results."""

import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
sys.path[:0] = [str(EXAMPLES), str(ROOT / "bench")]
import compare_digits  # noqa: E402
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


def test_the_page_tells_how_long_the_file_is_and_how_it_is_run():
    assert len(SOURCE.splitlines()) < 80
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
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    how = {"capture_output": True, "text": True, "check": True, "env": environment}
    assert "--epochs" in subprocess.run([sys.executable, script, "--help"], **how).stdout
    run = subprocess.run([sys.executable, script, "--out", tmp_path], **how)
    assert re.search(r"epoch 9: 100%", run.stdout + run.stderr, re.IGNORECASE)
    lines, page = lines_of(tmp_path), (EXAMPLES / "frameworks.md").read_text(encoding="utf-8")
    assert lines[-1]["accuracy"] > 0.95
    for column, close in (("accuracy", 0.05), ("delay_mean", 0.3), ("delay_std", 0.3)):
        (row,) = re.findall(rf"^\| {column}.*? \| (.*) \|$", page, re.MULTILINE)
        shown = row.split(" | ")
        assert [line[column] for line in lines] == pytest.approx(list(map(float, shown)), abs=close)
