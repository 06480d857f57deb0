"""Where the tests run: on the GPU if there is one, else with Triton's interpreter on the CPU."""

import os
from collections.abc import Iterator
from contextlib import nullcontext

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported; its neighbours take the other cores.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton, which reads it when kernels are defined.
    os.environ["TRITON_INTERPRET"] = "1"

import tritonsyn
from tritonsyn.launch.config import SCANS, LaunchConfig, override_config


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in several processes, unless ``-n`` says how many; chosen files do not.

    Not by ``addopts``: benchmarks have to run alone.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    worker = hasattr(config, "workerinput")
    if not whole or worker or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    if option.numprocesses is None and option.dist == "no" and not option.usepdb:
        # More processes compile the same things more often.
        option.numprocesses = min(4, _cores())
        option.dist = "worksteal"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def device() -> torch.device:
    """The device that tests put their tensors on."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Where the interpreter runs, scans turn after two steps instead of 16.

    It takes as long for those that a turn lacks; and so short sequences have whole turns, too.
    """
    short = override_config(LaunchConfig(32, num_warps=1, UNROLL=2), *SCANS)
    with nullcontext() if torch.cuda.is_available() else short:
        yield


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest, short_turns: None) -> str:
    """Each backend in turn; Triton on a CPU means its interpreter, which wants tiny shapes."""
    return request.param


@pytest.fixture
def each_backend(backend: str) -> Iterator[str]:
    """Each backend in turn, as what runs wherever the test names none."""
    with tritonsyn.use_backend(backend):
        yield backend


@pytest.fixture
def small_tiles() -> Iterator[None]:
    """Kernels run in the smallest tiles, so that small shapes have edges."""
    with override_config(LaunchConfig(32, BLOCK_R=16, BLOCK_C=16)):
        yield


@pytest.fixture
def large_tiles() -> Iterator[None]:
    """Reads run in tiles that hold all of a test's work, which the interpreter does quickly."""
    with override_config(LaunchConfig(8192), "select_fwd_kernel"):
        yield


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Every test starts from the same seed, and names the backend where it wants the kernels."""
    torch.manual_seed(0)
    with tritonsyn.use_backend("reference"):
        yield
