"""Which launch settings a sweep tries: a space per kernel, from a file or by default."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path

import torch

from ..launch.config import HEURISTICS, SCANS, LaunchConfig, Work
from ..system import read_json

Space = Mapping[str, Iterable[int]]
"""Values to try of each setting; what is left out is as ``LaunchConfig`` has it."""

SETTINGS = tuple(field.name for field in fields(LaunchConfig))


def _tiles(
    block: list[int], outputs: list[int], inputs: list[int], unroll: tuple[int, ...] = (1,)
) -> Space:
    """Of a projection; ``block`` counts places, as ``BLOCK`` does."""
    tile = {"BLOCK_R": outputs, "BLOCK_C": inputs}
    return {"BLOCK": block, "num_warps": [4, 8], "UNROLL": unroll, **tile}


_STREAMS: Space = {"BLOCK": [128, 256, 512, 1024, 2048, 4096], "num_warps": [1, 2, 4, 8]}
_SCANS = {"BLOCK": [64, 128, 256, 512], "num_warps": [1, 2, 4], "UNROLL": [1, 2, 4, 8, 16]}
_SPIKES: Space = {"BLOCK": [32, 64, 128, 256], "num_warps": [1, 2, 4], "UNROLL": [1, 2, 4]}
_LINES: Space = {"BLOCK": [16, 32, 64], "num_warps": [2, 4, 8]}
_BITS = {"BLOCK": [32, 64, 128], "num_warps": [1, 2, 4], "UNROLL": [7, 14, 21, 28]}
_PROJECTIONS = {
    "lines_kernel": _LINES,
    "shift_table_kernel": _LINES,
    "shift_sum_kernel": {
        "BLOCK": [128, 256, 512],
        "num_warps": [1, 2, 4, 8],
        "BLOCK_R": [8, 16, 32, 64],
    },
    "shift_dot_kernel": _tiles([64, 128, 256], [4, 8, 16], [2, 4, 8]),
    "shift_step_kernel": _tiles([16, 32, 64], [1, 2, 4], [1], unroll=(4, 8, 16)),
    "links_sum_kernel": _tiles([128, 256, 512], [2, 4, 8], [1]),
    "links_dot_kernel": _tiles([64, 128, 256], [1], [4, 8, 16]),
    "links_step_kernel": _tiles([16, 32, 64], [1, 2, 4], [1]),
    "temporal_gemm_kernel": _tiles([32, 64, 128], [32, 64], [16, 32, 64]),
    "temporal_gemm_dot_kernel": _tiles([32, 64], [32, 64], [32, 64]),
    "bit_sum_kernel": {
        **_BITS,
        "UNROLL": [7, 14, 28, 35, 42, 50, 56],
        "BLOCK_R": [1, 2, 4],
        "BLOCK_C": [2, 4],
    },
    "bit_dot_kernel": {**_BITS, "BLOCK_C": [4, 8, 16]},
    "spike_sum_kernel": _SPIKES,
    "spike_dot_kernel": _SPIKES,
}


def default_configs(kernel: str, work: Work, dtype: torch.dtype) -> list[LaunchConfig]:
    """What a sweep tries unless told otherwise: the heuristic's choice and all around it."""
    usual = HEURISTICS[kernel](work, dtype)
    if kernel in _PROJECTIONS:
        around = configs_of({**_PROJECTIONS[kernel], "chunks": [usual.chunks]})
    else:
        space = {**_SCANS, "chunks": sorted({1, usual.chunks, 2 * usual.chunks})}
        around = configs_of(space if kernel in SCANS else _STREAMS)
        # Elements of a thread: fewer waste lanes or width, more overflow the registers.
        around = [c for c in around if 2 <= c.BLOCK / (32 * c.num_warps) <= 16]
    return list(dict.fromkeys([usual, *around]))


def configs_of(space: Space, origin: str = "space") -> list[LaunchConfig]:
    """Every combination of a space's values; ``ValueError`` says what is wrong with the space."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"{origin} must be an object of lists, by {', '.join(SETTINGS)}")
    for name, values in space.items():
        if name not in SETTINGS:
            raise ValueError(f"{origin} has {name!r}, but settings are {', '.join(SETTINGS)}")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"{origin}: {name} must be a list of values, but is {values!r:.80}")
    if "BLOCK" not in space:
        raise ValueError(f"{origin} has no values of BLOCK, which has no default")
    try:
        combinations = product(*space.values())
        return [LaunchConfig(**dict(zip(space, values, strict=True))) for values in combinations]
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def read_spaces(path: Path) -> dict[str, list[LaunchConfig]]:
    """The spaces of a JSON file, by kernel: one for all, or one for each kernel that it names.

    ``{"BLOCK": [128, 256], "num_warps": [1, 2]}`` or ``{"exp_scan_kernel": {"BLOCK": [128]}}``.
    Raises ``ValueError`` with what is wrong.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"space {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"space {path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not any(name in HEURISTICS for name in content):
        configs = configs_of(content, f"space {path}")
        return dict.fromkeys(HEURISTICS, configs)
    for name in content:
        if name not in HEURISTICS:
            raise ValueError(f"space {path} has {name!r}, but kernels are {', '.join(HEURISTICS)}")
    return {name: configs_of(space, f"space {path}, {name}") for name, space in content.items()}
