"""The command line: what it tells and how it refuses."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tritonsyn import cli
from tritonsyn.cli import demo, info


def test_info_tells_versions_devices_and_backends(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("versions", "torch", "devices", "backend", "caches", "TRITONSYN_BACKEND"):
        assert word in out


def test_info_as_json(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["caches"]["compiled kernels"] == str(tmp_path)
    assert facts["backend"]["default"] == "reference"
    assert facts["backend"]["cpu"].startswith("reference: ")


def test_info_where_a_driver_counts_gpus_that_it_cannot_start(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info"]) == 0
    assert "no CUDA device on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, but is 0"),
        (["--seed", "-1"], "--seed must be in 0 to 2**32 - 1, but is -1"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--device", "meta"], "--device must be cpu, cuda or one like cuda:1, but is meta"),
    ],
)
def test_the_demo_refuses_in_one_line(capsys, tmp_path, arguments, message):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_demo_refuses_a_folder_it_cannot_make(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_the_demo_names_the_extra_that_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(demo.NEEDS, "no_such_module", "no-such-package")
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'tritonsyn[demo]'" in capsys.readouterr().err


def test_an_interrupt_ends_quietly(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "facts", interrupt)
    assert cli.main(["info"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_an_unknown_command_is_refused(arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


def test_an_unknown_backend_in_the_environment_is_told_in_one_line():
    command = [
        sys.executable,
        "-c",
        "from tritonsyn.cli import main; raise SystemExit(main(['info']))",
    ]
    environment = {**os.environ, "TRITONSYN_BACKEND": "bogus"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "environment variable TRITONSYN_BACKEND is 'bogus', but must be one of auto" in done.stderr
    )


def test_info_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert info.facts()["caches"]["compiled kernels"] is None


def test_what_compiles_kernels_asks_for_triton(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "triton" else found(name)
    )
    assert cli.main(["check"]) == 2
    assert "the package triton is not installed" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_does_not_fail_it():
    command = [sys.executable, "-c", "import sys; from tritonsyn import cli; sys.exit(cli.main())"]
    with subprocess.Popen([*command, "info", "--json"], stdout=subprocess.PIPE) as run:
        run.stdout.close()
    assert run.returncode == 0
