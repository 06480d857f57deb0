"""Options and the final table of ``pytest bench``."""

import pytest
import results
import torch
from machine import device_name

_RESULTS = pytest.StashKey[list[results.Result]]()


def pytest_addoption(parser):
    parser.addoption(
        "--record", action="store_true", help="append the figures to bench/results/ as CSV"
    )


def pytest_configure(config):
    config.stash[_RESULTS] = []


@pytest.fixture
def record_result(request):
    """Hands a result over to the final table."""
    return request.config.stash[_RESULTS].append


@pytest.hookimpl(trylast=True)  # after the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter, config):
    found = config.stash[_RESULTS]
    if not found:
        return
    terminalreporter.section("tritonsyn against inferno-ai: medians of interleaved pairs")
    for line in results.table(found):
        terminalreporter.write_line(line)
    terminalreporter.write_line("others: the part of the machine that other processes used")
    terminalreporter.write_line(f"cpu: {device_name('cpu')}")
    if torch.cuda.is_available():
        terminalreporter.write_line(f"cuda: {device_name('cuda')}")
    else:
        terminalreporter.write_line("no CUDA device here: the Triton backend was not timed")
    if config.getoption("--record"):
        terminalreporter.write_line(f"recorded in {results.write(found)}")
