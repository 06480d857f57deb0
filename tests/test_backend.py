"""Which implementation runs is chosen openly, and what cannot run says why."""

import os
import runpy
import subprocess
import sys

import pytest
import torch
from synapses import every_kind, make

import tritonsyn
from tritonsyn import BackendError, RecordTensor, get_backend, set_backend, use_backend
from tritonsyn import backend as backends
from tritonsyn.ops.common import implementation

CPU = torch.device("cpu")


def run(script, **variables):
    """Runs a script in a fresh interpreter that has these environment variables and no others."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON")}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(autouse=True)
def default_restored():
    """Whatever a test sets, the next one finds the default that was."""
    before = get_backend()
    yield
    set_backend(before)


class Answer(str):
    """What was answered; an operation that asked once asks its parts for that by name."""


@pytest.fixture
def asked(monkeypatch):
    """The backends that calls ask for, in order; each call then runs on the reference.

    What an operation asks for the second time is the answer that it got.
    """
    seen = []

    def resolve(device, requested=None):
        if not isinstance(requested, Answer):
            seen.append(requested or get_backend())
        return Answer("reference")

    monkeypatch.setattr("tritonsyn.ops.common.resolve", resolve)
    return seen


# -- the default ----------------------------------------------------------------------------------


def test_set_backend():
    for name in ("reference", "triton", "auto", "Reference", "AUTO"):
        set_backend(name)
        assert get_backend() == name.lower()


def test_use_backend_ends_with_its_block():
    set_backend("auto")
    with use_backend("reference"):
        assert get_backend() == "reference"
        with use_backend("triton"):
            assert get_backend() == "triton"
        assert get_backend() == "reference"
    assert get_backend() == "auto"
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert get_backend() == "auto"


@pytest.mark.parametrize("name", ["cuda", "", "torch", None, 1])
def test_unknown_names(name):
    set_backend("reference")
    words = "must be one of auto, triton, reference"
    with pytest.raises(BackendError, match=f"backend is {name!r}, but {words}"):
        set_backend(name)
    with pytest.raises(BackendError, match=words), use_backend(name):
        pass
    assert get_backend() == "reference"
    if name:
        with pytest.raises(BackendError, match=words):
            backends.resolve(CPU, name)


def test_the_error_is_a_runtime_error_of_the_package():
    assert issubclass(tritonsyn.BackendError, RuntimeError)


# -- precedence -----------------------------------------------------------------------------------


@every_kind
def test_call_before_module_before_default(kind, asked):
    """The argument of a call, then the module's, then the default."""
    x = torch.zeros(1, 3)
    set_backend("reference")
    synapse = make(kind, delay=1.0)
    synapse(x)
    synapse.backend = "auto"
    synapse(x)
    synapse(x, backend="triton")
    assert list(dict.fromkeys(asked)) == ["reference", "auto", "triton"]
    synapse.backend = None
    asked.clear()
    with use_backend("triton"):
        synapse(x)
    assert set(asked) == {"triton"}


@every_kind
def test_module_backend_reaches_its_records_and_reads(kind, asked):
    synapse = make(kind, delay=1.0, backend="auto")
    assert {record.backend for record in synapse.children()} == {"auto"}
    synapse.backend = "TRITON"
    assert synapse.backend == "triton"
    assert {record.backend for record in synapse.children()} == {"triton"}
    synapse.delay = 2.0
    assert {record.backend for record in synapse.children()} == {"triton"}
    synapse.current_at(torch.zeros(1, 3)), synapse.spike_at(torch.zeros(1, 3))
    synapse.spike = torch.ones(1, 3)
    assert set(asked) == {"triton"} and len(asked) >= 3


def test_backend_of_a_record(asked):
    record = RecordTensor(1.0, 3.0, torch.zeros(1, 2), backend="auto")
    record.push(torch.ones(1, 2)), record.select(1.0)
    assert set(asked) == {"auto"}


# -- what runs where ------------------------------------------------------------------------------


def test_resolve_names_what_runs():
    assert backends.resolve(CPU, "reference") == "reference"
    expected = "triton" if backends.interpreting() else "reference"
    assert backends.resolve(CPU, "auto") == expected


def test_implementation_is_the_module_that_runs():
    for stem in ("read", "record", "step"):
        module = implementation(stem, CPU, "reference")
        assert module.__name__ == f"tritonsyn.reference.{stem}"


def test_explain_gives_the_reason():
    with use_backend("reference"):
        assert backends.explain(CPU) == ("reference", "asked for")
    with use_backend("auto"):
        name, reason = backends.explain(CPU)
    if backends.interpreting():
        assert (name, reason) == ("triton", "Triton's interpreter is on")
    else:
        assert name == "reference" and "interpreter is off" in reason


def test_other_devices_run_on_the_reference():
    meta = torch.device("meta")
    assert backends.resolve(meta, "auto") == "reference"
    with pytest.raises(BackendError, match=r"backend 'triton' cannot run: .*'meta'"):
        backends.resolve(meta, "triton")
    with use_backend("triton"):
        name, reason = backends.explain(meta)
    assert name == "unavailable" and "no Triton kernels for device type 'meta'" in reason


def test_rocm_is_refused_with_a_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    functions = (backends._triton_obstacle, backends._resolve)
    for function in functions:
        function.cache_clear()
    gpu = torch.device("cuda")
    try:
        with pytest.raises(BackendError, match="'triton' cannot run: this is PyTorch for ROCm"):
            backends.resolve(gpu, "triton")
        with pytest.raises(BackendError, match=r"for ROCm.*; backend='reference' runs on plain"):
            backends.resolve(gpu, "auto")
        assert backends.resolve(gpu, "reference") == "reference"
    finally:
        for function in functions:
            function.cache_clear()


def test_without_triton(monkeypatch):
    """A CPU falls to the reference with the reason; a GPU is an error, not a slow surprise."""
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    functions = (backends._triton_obstacle, backends._resolve)
    for function in functions:
        function.cache_clear()
    try:
        with use_backend("auto"):
            assert backends.explain(CPU) == ("reference", "the package triton is not installed")
            with pytest.raises(BackendError, match=r"'auto' means Triton.*not installed"):
                backends.resolve(torch.device("cuda"))
            assert backends.explain(torch.device("cuda"))[0] == "unavailable"
        with pytest.raises(BackendError, match="'triton' cannot run: the package triton is not"):
            backends.resolve(CPU, "triton")
        assert backends.resolve(torch.device("cuda"), "reference") == "reference"
    finally:
        for function in functions:
            function.cache_clear()


# -- fresh processes ------------------------------------------------------------------------------

STEP = """
import sys, torch, tritonsyn
from tritonsyn import backend
synapse = tritonsyn.SingleExponentialCurrent(2, 1.0, spike_charge=10.0, time_constant=5.0)
def tried(**options):
    try:
        return synapse(torch.ones(1, 2), **options).tolist()
    except tritonsyn.BackendError as error:
        return str(error)
"""


def test_nothing_set():
    """On a CPU the reference runs, and no Triton is imported; asking for it says what to do."""
    done = run(
        STEP + "print(tritonsyn.get_backend()); print(backend.explain(torch.device('cpu')))\n"
        "print(tried()); print('triton' in sys.modules)\n"
        "print(tried(backend='triton')); print(synapse.current.tolist())\n"
    )
    assert done.returncode == 0, done.stderr
    default, explained, y, loaded, refusal, state = done.stdout.splitlines()
    assert default == "auto" and y == "[[2.0, 2.0]]" and loaded == "False"
    assert "'reference'" in explained and "Triton's interpreter is off" in explained
    assert refusal.startswith("backend 'triton' cannot run: the tensors are on the CPU")
    assert "TRITON_INTERPRET=1" in refusal
    assert state == y  # the refused step changed nothing


def test_environment_variable():
    """It sets the default; a call can still ask for something else."""
    done = run(
        STEP + "print(tritonsyn.get_backend()); print(tried())\n"
        "print(backend.explain(torch.device('cpu'))); print(tried(backend='reference'))",
        TRITONSYN_BACKEND="Triton",
    )
    assert done.returncode == 0, done.stderr
    default, refusal, explained, y = done.stdout.splitlines()
    assert default == "triton" and y == "[[2.0, 2.0]]"
    assert refusal.startswith("backend 'triton' cannot run")
    assert explained.startswith("('unavailable', \"backend 'triton' cannot run")


@pytest.mark.parametrize(
    ("value", "name"), [(None, "auto"), ("", "auto"), ("REFERENCE", "reference")]
)
def test_environment_variable_is_read_at_import(monkeypatch, value, name):
    monkeypatch.delenv("TRITONSYN_BACKEND", raising=False)
    if value is not None:
        monkeypatch.setenv("TRITONSYN_BACKEND", value)
    assert runpy.run_module(backends.__name__)["get_backend"]() == name


def test_environment_variable_with_an_unknown_name(monkeypatch):
    monkeypatch.setenv("TRITONSYN_BACKEND", "gpu")
    words = "environment variable TRITONSYN_BACKEND is 'gpu', but must be one of auto, triton"
    get_backend = runpy.run_module(backends.__name__)["get_backend"]
    with pytest.raises(RuntimeError, match=words):
        get_backend()


def test_interpreter():
    """With it on, ``auto`` means the kernels on a CPU too, and they compute the same."""
    pytest.importorskip("triton")
    done = run(
        STEP + "print(backend.explain(torch.device('cpu'))); print(tried())\n"
        "print('tritonsyn.launch.step' in sys.modules)",
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stderr
    explained, y, loaded = done.stdout.splitlines()
    assert explained == "('triton', \"Triton's interpreter is on\")"
    assert y == "[[2.0, 2.0]]" and loaded == "True"
