"""The demonstration: its data, its network, what it writes, and that it repeats itself."""

import json
import os

import pytest
import torch

pytest.importorskip("snntorch")

from tritonsyn import cli
from tritonsyn.demo import data, main, train
from tritonsyn.demo.network import Network


@pytest.fixture
def few(monkeypatch):
    """A training set and a test set small enough for a test."""
    whole = data.load

    def small(seed):
        return tuple(data.Digits(*(part[:64] for part in digits)) for digits in whole(seed))

    monkeypatch.setattr(train, "load", small)
    return small


def test_digits_are_split_by_class_without_overlap():
    training, test = data.load(0)
    assert len(training.labels) + len(test.labels) == 1797
    assert len(test.labels) == 450
    shares = [labels.bincount() / len(labels) for labels in (training.labels, test.labels)]
    torch.testing.assert_close(*shares, atol=0.005, rtol=0)


def test_spikes_follow_the_rows_and_end_before_the_decision():
    image = torch.zeros(1, 8, 8)
    image[0, 2, 5] = 1.0
    spikes = data.encode(image, torch.Generator().manual_seed(0))
    assert spikes.shape == (data.STEPS, 1, data.INPUTS)
    step, _, neuron = spikes.nonzero(as_tuple=True)
    assert set(step.tolist()) == set(range(2 * data.ROW_STEPS, 3 * data.ROW_STEPS))
    assert set(neuron.tolist()) == {5, 13}


def test_a_pixel_fires_at_its_brightness():
    images = torch.full((500, 8, 8), 0.3)
    spikes = data.encode(images, torch.Generator().manual_seed(0))
    rate = spikes[: data.ROWS * data.ROW_STEPS].mean()
    assert abs(rate - 0.3) < 0.01


def test_both_networks_start_alike_but_for_their_delays():
    networks = []
    for frozen in (False, True):
        torch.manual_seed(3)
        networks.append(Network(frozen))
    for learned, frozen in zip(*(network.layers() for network in networks), strict=True):
        assert torch.equal(learned.weight, frozen.weight)
        assert learned.delay.requires_grad and learned.delay.any()
        assert not frozen.delay.requires_grad and not frozen.delay.any()


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = Network()
    spikes = data.encode_test(data.load(0)[1].images[:16])
    network(spikes).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_same_seed_gives_the_same_figures(few):
    runs = [train.train(2, 5, torch.device("cpu"), frozen=False, quiet=True) for _ in range(2)]
    assert runs[0].loss == runs[1].loss
    assert runs[0].accuracy == runs[1].accuracy
    bounds = [layer.synapse.delay for layer in runs[0].network.layers()]
    for layer, longest in zip(runs[0].network.layers(), bounds, strict=True):
        assert 0 <= layer.delay.min() and layer.delay.max() <= longest


def test_the_figures_and_the_picture_are_written(few, tmp_path, capsys):
    metrics = main.run(1, 0, torch.device("cpu"), tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == metrics
    assert written["test_accuracy"] == written["accuracy_per_epoch"][-1]
    assert written["frozen_test_accuracy"] == written["frozen_accuracy_per_epoch"][-1]
    assert written["seconds"]["total"] > 0
    assert written["versions"]["torch"]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.png", "metrics.json"]
    printed = capsys.readouterr().out
    announced, results = printed.split("\n\n")
    assert "1 epoch;" in announced and f"Results go to {tmp_path}" in announced
    assert "about 1 s" in announced
    assert "delays are worth" in results


def test_the_command_trains_into_its_folder(few, tmp_path, capsys):
    assert cli.main(["demo", "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "demo.png").exists()
    assert capsys.readouterr().out.startswith("Loading")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} cannot be written to" in capsys.readouterr().err
