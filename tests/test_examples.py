"""The example that learns: it runs, it is short, and its page shows its results."""

import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
sys.path.insert(0, str(EXAMPLES))
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
