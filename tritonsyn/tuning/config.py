"""Launch settings, and the heuristics that choose them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class ScanConfig:
    """How a sequence scan is launched."""

    block: int
    """Synapses a program walks through time."""
    unroll: int
    """Steps whose loads are in flight ahead of the recurrence."""
    chunks: int
    """Parts that the sequence is cut into and that run side by side; each part is read twice."""
    num_warps: int = 1


# Programs that keep a large GPU busy; fewer than this and time is cut into chunks.
_BUSY = 1024
# A chunk shorter than this spends more on its carries than it saves.
_SHORTEST_CHUNK = 64

_override: ScanConfig | None = None


def scan_config(steps: int, size: int, itemsize: int = 4) -> ScanConfig:
    """The settings for ``steps`` steps of ``size = B * N`` synapses carried in so many bytes."""
    if _override is not None:
        return _override
    block = min(128, max(32, 1 << max(size - 1, 0).bit_length()))
    programs = -(-size // block)
    chunks = max(1, min(_BUSY // max(programs, 1), steps // _SHORTEST_CHUNK))
    # In float64 eight steps of a double synapse do not fit in the registers.
    return ScanConfig(block=block, unroll=8 if itemsize <= 4 else 2, chunks=chunks)


@contextmanager
def override_scan_config(config: ScanConfig) -> Iterator[None]:
    """Scans use this configuration until the block ends; for tests and sweeps."""
    global _override
    previous, _override = _override, config
    try:
        yield
    finally:
        _override = previous
