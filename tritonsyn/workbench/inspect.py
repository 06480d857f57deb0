"""Compiles kernels for any NVIDIA GPU, without one, and says what came out."""

import importlib
import math
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..launch import tables
from ..launch.config import LaunchConfig, check_names, from_dict
from . import sass
from .calls import CALLS
from .ptx import Access, accesses, loops
from .record import Pointer, Variant, variants
from .workers import CompileError, Workers


class Job(NamedTuple):
    """What is to be compiled."""

    variant: Variant
    target: str  # "sm_90"
    config: LaunchConfig
    machine_code: bool = True  # count its instructions, besides its registers and memory


# -- what is said of a kernel ------------------------------------------------------------------


@dataclass(frozen=True)
class StreamReport:
    """An array that a kernel goes through in order."""

    itemsize: int
    loads: int  # of each element; those that it needs
    stores: int
    moved: float  # bytes that the code moves per element
    bits: int  # the narrowest access

    @property
    def minimum(self) -> int:
        """Bytes per element that cannot be done without."""
        return self.itemsize * (self.loads + self.stores)


@dataclass(frozen=True)
class Report:
    """What became of a job."""

    job: Job
    types: dict[str, str]  # of elements, by pointer
    registers: int  # per thread
    spills: int  # bytes per thread in local memory
    shared: int  # bytes per program
    instructions: int  # of the machine code as it stands; 0 if unread
    in_loops: int  # those of them that stand in a loop
    virtual: int  # instructions of the PTX, from which the machine code is made
    elements: int  # of a stream, that a program touches in one pass of its code
    loops: bool  # whether the PTX has a loop
    streams: dict[str, StreamReport]
    loads: dict[int, int]  # global loads in the PTX by their width in bits
    stores: dict[int, int]
    resident_warps: int  # that a multiprocessor holds at once

    @property
    def occupancy(self) -> float:
        """The resident warps as a part of what a multiprocessor can hold, 0 to 1."""
        return self.resident_warps / LIMITS[self.job.target].warps

    @property
    def copies(self) -> int:
        """How often a loop's body stands in the code, where the compiler has unrolled it further.

        Then all streams are moved the same whole number of times more than they need.
        """
        ratios = {stream.moved / stream.minimum for stream in self.streams.values()}
        ratio = ratios.pop() if self.loops and len(ratios) == 1 else 1.0
        return int(ratio) if ratio >= 1 and ratio.is_integer() else 1

    @property
    def bytes_per_element(self) -> float:
        """What the code moves through the streams."""
        return sum(stream.moved for stream in self.streams.values()) / self.copies

    @property
    def minimum(self) -> int:
        """What the streams cannot do without, as the kernel's docstring counts it."""
        return sum(stream.minimum for stream in self.streams.values())

    def findings(self) -> list[str]:
        """What is not as it should be, each in words; empty if all is well.

        No spills; every element of a stream once per load and store; accesses as wide as all that
        a thread has of a row, up to 128 bits. One element of a thread is enough: a warp of them
        fills whole sectors. Unaligned variants are exempt from the last.
        """
        found = [f"{self.spills} bytes per thread are spilled"] if self.spills else []
        if not self.resident_warps:
            found.append("not even one program fits on a multiprocessor")
        config = self.job.config
        of_a_thread = max(1, self.elements // config.UNROLL // (32 * config.num_warps))
        for name, stream in self.streams.items():
            moved = stream.moved / self.copies
            if moved != stream.minimum:
                found.append(f"{name} moves {moved:g} bytes per element, not {stream.minimum}")
            widest = min(128, 8 * stream.itemsize * of_a_thread)
            if self.job.variant.aligned and stream.bits < widest:
                found.append(f"{name} is accessed in {stream.bits} bits, not {widest}")
        return found


# -- how many warps of it fit on a multiprocessor ------------------------------------------------

_REGISTERS = 65536  # per multiprocessor, in all generations below
_PARTITIONS = 4  # of a multiprocessor, each with its own registers
_REGISTER_UNIT = 256  # registers are given to a warp in portions of this size
_KIB = 1024


class Limits(NamedTuple):
    """What a multiprocessor has, and how many of them the largest common product has."""

    warps: int
    blocks: int
    shared: int  # bytes of shared memory, all blocks together
    reserved: int  # bytes of shared memory that the system takes for each block
    multiprocessors: int


LIMITS = {
    "sm_75": Limits(warps=32, blocks=16, shared=64 * _KIB, reserved=0, multiprocessors=40),
    "sm_80": Limits(warps=64, blocks=32, shared=164 * _KIB, reserved=_KIB, multiprocessors=108),
    "sm_86": Limits(warps=48, blocks=16, shared=100 * _KIB, reserved=_KIB, multiprocessors=84),
    "sm_89": Limits(warps=48, blocks=24, shared=100 * _KIB, reserved=_KIB, multiprocessors=128),
    "sm_90": Limits(warps=64, blocks=32, shared=228 * _KIB, reserved=_KIB, multiprocessors=132),
    "sm_100": Limits(warps=64, blocks=32, shared=228 * _KIB, reserved=_KIB, multiprocessors=148),
    "sm_120": Limits(warps=48, blocks=24, shared=100 * _KIB, reserved=_KIB, multiprocessors=170),
}
"""By architecture. Source: NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities", table of
technical specifications; multiprocessors as NVIDIA's data sheets give them for T4, A100, RTX A6000,
RTX 4090, H100 SXM, B200 and RTX 5090."""


def resident_warps(target: str, registers: int, num_warps: int, shared: int) -> int:
    """Warps that a multiprocessor of ``target`` holds at once of a kernel.

    ``registers`` per thread, ``num_warps`` per program, ``shared`` bytes per program. 0 where not
    even one program fits.
    """
    limits = LIMITS[target]
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = _REGISTERS // _PARTITIONS // max(per_warp, 1) * _PARTITIONS // num_warps
    by_warps = limits.warps // num_warps
    by_shared = limits.shared // max(shared + limits.reserved, 1)
    return min(limits.blocks, by_registers, by_warps, by_shared) * num_warps


# -- how it is found out, in a process without the interpreter ---------------------------------


@cache
def all_kernels() -> dict[str, Any]:
    """Every kernel of every module in ``kernels``, by name."""
    return {
        name: value
        for module in _modules()
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "arg_names")
    }


@cache
def all_streams() -> dict[str, Any]:
    """The streams of every kernel, as its module declares them."""
    return {name: s for m in _modules() for name, s in getattr(m, "STREAMS", {}).items()}


def _modules() -> list[Any]:
    kernels = importlib.import_module("..kernels", __package__)
    found = pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}.")
    return [importlib.import_module(module.name) for module in found]


def _no_gpu(target: str) -> Any:
    """A driver for Triton that compiles for an architecture and launches nothing."""
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    return SimpleNamespace(
        get_current_device=lambda: gpu.arch,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: gpu,
    )


class Listing(NamedTuple):
    """A report, and the code that it is about."""

    report: Report
    ptx: str
    sass: str


def report(job: Job) -> Report:
    """What a variant of a kernel becomes; raises whatever the compiler raises."""
    return listing(job).report


def listing(job: Job) -> Listing:
    """The same with its code."""
    from triton.runtime import driver

    from ..launch.launcher import settings

    variant, config = job.variant, job.config
    kernel = all_kernels()[variant.kernel]
    options = {**dict(variant.constants), **settings(kernel.fn, config)}
    driver.set_active(_no_gpu(job.target))
    compiled = kernel.warmup(*variant.arguments, grid=(1,), **options)
    ptx, shared = compiled.asm["ptx"], int(compiled.metadata.shared)
    used, text = _machine_code(compiled.asm["cubin"], job.machine_code)
    code = instructions(text)

    given = dict(zip(kernel.arg_names, variant.arguments, strict=False))
    pointers = {n: a for n, a in given.items() if isinstance(a, Pointer)}
    # A compiled kernel takes neither absent arguments, nor numbers that are 1.
    passed = [name for name, argument in given.items() if argument not in (None, 1)]
    found, turning = accesses(ptx, passed), accesses(ptx, passed, loops(ptx))
    declared = all_streams()[variant.kernel]
    arguments = given | options
    elements = math.prod(arguments[f] if isinstance(f, str) else f for f in declared.elements)
    streams = {}
    for name, stream in declared.pointers.items():
        if name not in pointers or any(c not in arguments.items() for c in stream.conditions):
            continue
        # What a loop goes through counts there, not where the first turn's loads are issued.
        counted = turning if any(access.pointer == name for access in turning) else found
        own = [(access.bits, count) for access, count in counted.items() if access.pointer == name]
        moved = sum(bits // 8 * count for bits, count in own) * 32 * config.num_warps / elements
        narrowest = min((bits for bits, _ in own), default=0)
        size = pointers[name].dtype.itemsize
        streams[name] = StreamReport(size, stream.loads, stream.stores, moved, narrowest)
    made = Report(
        job,
        types={n: str(a.dtype).removeprefix("torch.") for n, a in pointers.items()},
        registers=used["REG"],
        spills=used["STACK"] + used["LOCAL"],
        shared=shared,
        instructions=code[0],
        in_loops=code[1],
        virtual=len(re.findall(r"^\s+(?![./\s]).*;$", ptx, re.M)),
        elements=elements,
        loops=bool(loops(ptx)),
        streams=streams,
        loads=_widths(found, store=False),
        stores=_widths(found, store=True),
        resident_warps=resident_warps(job.target, used["REG"], config.num_warps, shared),
    )
    return Listing(made, ptx, text)


def _widths(found: Counter[Access], store: bool) -> dict[int, int]:
    widths: Counter[int] = Counter()
    for access, count in found.items():
        if access.store == store:
            widths[access.bits] += count
    return dict(sorted(widths.items(), reverse=True))


def _machine_code(cubin: bytes, read: bool) -> tuple[dict[str, int], str]:
    """Registers, stack and local memory; and the machine code, where it is wanted."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        options = ["--dump-resource-usage", *(["--dump-sass"] if read else [])]
        command = [knobs.nvidia.cuobjdump.path, *options, str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = re.search(r"\bREG:.*", text)
    if used is None:
        raise RuntimeError("cuobjdump does not say what the kernel uses")
    return {n: int(v) for n, v in re.findall(r"\b([A-Z]+):(\d+)", used[0])}, text


def instructions(text: str) -> tuple[int, int]:
    """How many instructions the machine code has, and how many of them stand in a loop.

    Padding does not count, nor does the jump to itself at the end.
    """
    code = sass.read(text)
    spans = sass.loops(code)
    inside = sum(any(first <= at <= last for first, last in spans) for at in range(len(code)))
    return len(code), inside


# -- everything at once ------------------------------------------------------------------------

TARGETS = tuple(LIMITS)  # that can be compiled for
USUAL_TARGETS = ("sm_80", "sm_90", "sm_100")

Outcome = tuple[Job, Report | CompileError]


def check(
    targets: Sequence[str] = USUAL_TARGETS,
    kernels: Sequence[str] | None = None,
    machine_code: bool = True,
    progress: Callable[[Iterable[Outcome], int], Iterable[Outcome]] | None = None,
) -> list[Outcome]:
    """Compiles the kernels (None: all) for the targets; needs no GPU.

    ``progress`` may wrap the outcomes as they come, and is told their number. ``machine_code`` as
    in :class:`Job`. Raises ``ValueError`` for an unknown kernel or target, with those that exist,
    and one of ``MACHINE_ERRORS`` where the machine fails, such as for space: no kernel's fault.
    """
    check_names("kernel", kernels or (), CALLS)
    check_names("target", targets, TARGETS)
    jobs = [
        Job(variant, target, config, machine_code)
        for kernel in kernels or CALLS
        for variant in variants()
        if variant.kernel == kernel
        for target in targets
        for config in shipped_configs(variant)
    ]
    with Workers(report) as compilers:
        outcomes = zip(jobs, compilers.map(jobs), strict=True)
        return list(progress(outcomes, len(jobs)) if progress else outcomes)


def as_dict(job: Job, outcome: Report | CompileError) -> dict[str, Any]:
    """An outcome as plain data; where the kernel did not compile, its figures are None."""
    variant = job.variant
    known = {
        "kernel": variant.kernel,
        "variant": [v for v in variants() if v.kernel == variant.kernel].index(variant),
        "target": job.target,
        "config": job.config.as_dict(),
        "aligned": variant.aligned,
    }
    if isinstance(outcome, CompileError):
        figures = dict.fromkeys(("registers", "spills", "shared", "occupancy", "loads", "stores"))
        findings = [f"does not compile: {outcome}"]
        return {**known, "types": {}, "streams": {}, **figures, "findings": findings}
    return {
        **known,
        **{name: value for name, value in asdict(outcome).items() if name != "job"},
        "occupancy": outcome.occupancy,
        "bytes_per_element": outcome.bytes_per_element,
        "minimum": outcome.minimum,
        "findings": outcome.findings(),
    }


def shipped_configs(variant: Variant) -> list[LaunchConfig]:
    """The configurations in which tritonsyn itself launches a variant: heuristics and tables."""
    launches = variants()[variant]
    configs = [launch.config.with_chunks(1) for launch in launches]  # chunks are in the grid only
    starts = tuple({tables.key(launch.name, launch.dtype, ()) for launch in launches})
    for path in tables.shipped():
        for key, entry in tables.read(path).items():
            if key.startswith(starts):
                configs.append(from_dict(entry["config"], str(path)))
    return list(dict.fromkeys(configs))
