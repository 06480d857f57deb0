"""Compiles every kernel in every configuration that tritonsyn launches it in by itself."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..kernels.signatures import SIGNATURES, Variant
from ..launch import tables
from ..launch.config import HEURISTICS, LaunchConfig, from_dict
from .occupancy import LIMITS
from .report import Report
from .workers import CompileError, Compilers, Job

TARGETS = tuple(LIMITS)
"""The architectures that can be compiled for."""
USUAL_TARGETS = ("sm_80", "sm_90", "sm_100")

DTYPES = {
    "i1": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32,
    "i64": torch.int64, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32,
    "fp64": torch.float64,
}  # fmt: skip
"""PyTorch's name of each element type of the signatures."""

Outcome = tuple[Job, Report | CompileError]


def check(
    targets: Sequence[str] = USUAL_TARGETS,
    kernels: Sequence[str] | None = None,
    read_code: bool = True,
    progress: Callable[[Sequence[Job], Iterable[Outcome]], Iterable[Outcome]] | None = None,
) -> list[Outcome]:
    """Compiles the kernels (None: all) for the targets; needs no GPU.

    ``progress`` may wrap the outcomes as they come. ``read_code`` as in :class:`Job`. Raises
    ``ValueError`` for an unknown kernel or target, with those that exist.
    """
    check_names("kernel", kernels or [], SIGNATURES)
    check_names("target", targets, TARGETS)
    jobs = [
        Job(kernel, index, target, config, read_code)
        for kernel in kernels or SIGNATURES
        for index, variant in enumerate(SIGNATURES[kernel])
        for target in targets
        for config in shipped_configs(kernel, variant)
    ]
    with Compilers() as compilers:
        outcomes = zip(jobs, compilers.map(jobs), strict=True)
        return list(progress(jobs, outcomes) if progress else outcomes)


def as_dict(job: Job, outcome: Report | CompileError) -> dict[str, Any]:
    """An outcome as plain data; where the kernel did not compile, its figures are None."""
    if isinstance(outcome, Report):
        return outcome.as_dict()
    config = job.config.as_dict()
    figures = dict.fromkeys(("registers", "spills", "shared", "occupancy", "loads", "stores"))
    place = {"kernel": job.kernel, "variant": job.variant, "target": job.target, "config": config}
    nothing = {"types": {}, "streams": {}, "aligned": SIGNATURES[job.kernel][job.variant].aligned}
    return {**place, **figures, **nothing, "findings": [f"does not compile: {outcome}"]}


def check_names(what: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """``ValueError`` for a name that is not among the allowed, with a list of those."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"{what} is {name!r}, but must be one of {', '.join(allowed)}")


def shipped_configs(kernel: str, variant: Variant) -> list[LaunchConfig]:
    """The configurations in which tritonsyn itself launches a variant: heuristics and tables."""
    dtype = DTYPES[variant.dtype]
    # Heuristics settle on one configuration for all large work, and on another for small. Odd sizes
    # come in all sizes, and are the only ones that small tiles are for.
    small = (1,) * len(variant.work)
    works = [variant.work] if variant.aligned else [variant.work, small]
    configs = [HEURISTICS[kernel](work, dtype) for work in works]
    start = f"{kernel} {str(dtype).removeprefix('torch.')} "
    for path in tables.shipped():
        for key, entry in tables.read(path).items():
            if key.startswith(start):
                configs.append(from_dict(entry["config"], str(path)))
    return list(dict.fromkeys(configs))
