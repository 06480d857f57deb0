"""Compiles kernels for any NVIDIA GPU, without one, and reads what came out.

Triton's interpreter must be off in the process (:mod:`tritonsyn.workbench.workers` sees to that).
"""

import importlib
import math
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.signatures import SIGNATURES, Variant
from ..launch.config import LaunchConfig
from . import sass
from .occupancy import occupancy, resident_warps
from .report import Report, StreamReport

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SIZES = {"i32": 4, "i64": 8, "fp32": 4, "fp64": 8}


@cache
def all_kernels() -> dict[str, Any]:
    """Every kernel of every module in ``kernels``, by name."""
    kernels = importlib.import_module("..kernels", __package__)
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.endswith("_kernel") and hasattr(value, "arg_names"):
                found[name] = value
    return found


def report(
    kernel: str, index: int, target: str, config: LaunchConfig, read_code: bool = True
) -> Report:
    """What variant ``index`` of a kernel becomes on a target (``"sm_90"``).

    Without ``read_code``, which takes most of the time, only registers and memory are told. Raises
    whatever the compiler raises.
    """
    function, variant = all_kernels()[kernel], SIGNATURES[kernel][index]
    constants = constants_of(function.arg_names, variant, config)
    num_warps = config.num_warps
    cubin, shared = _compile(function, variant, constants, num_warps, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        used = dict(_usage(_tool("cuobjdump", "--dump-resource-usage", str(path))))
        code = _tool("nvdisasm", "-c", str(path)) if read_code else ""
        base = _parameter_base(_tool("cuobjdump", "-elf", str(path))) if read_code else 0
    accesses = sass.accesses(code, dict(_pointers(function.arg_names, variant, base)))
    elements = _elements(variant, constants)
    return Report(
        kernel=kernel,
        variant=index,
        target=target,
        config=config.as_dict(),
        types={name: kind[1:] for name, kind in variant.types.items() if kind.startswith("*")},
        aligned=variant.aligned,
        registers=used["REG"],
        spills=used["STACK"] + used["LOCAL"],
        shared=shared,
        instructions=sass.instruction_count(code),
        elements=elements,
        loops=sass.has_loop(code),
        streams=_stream_reports(variant, accesses, elements, num_warps) if read_code else {},
        loads=_widths(accesses, store=False),
        stores=_widths(accesses, store=True),
        resident_warps=resident_warps(target, used["REG"], num_warps, shared),
        occupancy=occupancy(target, used["REG"], num_warps, shared),
    )


def constants_of(arguments: list[str], variant: Variant, config: LaunchConfig) -> dict[str, Any]:
    """The compile-time arguments of a variant, with the tiles of a configuration."""
    tiles = {
        "BLOCK": config.block, "BLOCK_R": config.rows, "BLOCK_C": config.columns,
        "UNROLL": config.unroll,
    }  # fmt: skip
    return {**variant.constants, **{name: v for name, v in tiles.items() if name in arguments}}


def _compile(
    function: Any, variant: Variant, constants: dict[str, Any], num_warps: int, target: str
) -> tuple[bytes, int]:
    """The machine code, and the bytes of shared memory that a launch asks for."""
    signature = {name: variant.types.get(name, "constexpr") for name in function.arg_names}
    special = {p.name for p in function.params if not p.do_not_specialize}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if variant.aligned and (kind.startswith("*") or (kind == "i32" and name in special))
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32),
        options={"num_warps": num_warps, "enable_fp_fusion": variant.enable_fp_fusion},
    )
    return bytes(compiled.asm["cubin"]), int(compiled.metadata.shared)


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _usage(text: str) -> Iterator[tuple[str, int]]:
    """Registers, stack and local memory."""
    for name, value in re.findall(r"\b([A-Z]+):(\d+)", text):
        yield name, int(value)


def _parameter_base(text: str) -> int:
    """Where the arguments begin in constant bank 0: the lower half of an entry of the header."""
    match = re.search(r"EIATTR_PARAM_CBANK\s+Format:\s*\w+\s+Value:\s*0x\w+\s+0x(\w+)", text)
    if match is None:
        raise RuntimeError("cuobjdump does not say where the kernel's arguments are")
    return int(match[1], 16) & 0xFFFF


def _pointers(arguments: list[str], variant: Variant, base: int) -> Iterator[tuple[int, str]]:
    """Offset in constant bank 0 and name of each pointer; arguments are aligned to their size."""
    offset = base
    for name in arguments:
        kind = variant.types.get(name)
        if kind is None:
            continue
        size = 8 if kind.startswith("*") else _SIZES[kind]
        offset = -(-offset // size) * size
        if kind.startswith("*"):
            yield offset, name
        offset += size


def _elements(variant: Variant, constants: dict[str, Any]) -> int:
    factors = (constants.get(f, 1) if isinstance(f, str) else f for f in variant.elements)
    return math.prod(factors)


def _stream_reports(
    variant: Variant, accesses: Counter[sass.Access], elements: int, num_warps: int
) -> dict[str, StreamReport]:
    found = {}
    for name, stream in variant.streams.items():
        own = {access: count for access, count in accesses.items() if access.pointer == name}
        by_thread = sum(access.bits // 8 * count for access, count in own.items())
        found[name] = StreamReport(
            itemsize=variant.itemsize(name),
            touches=stream.loads + stream.stores,
            moved=by_thread * 32 * num_warps / elements,
            bits=min((access.bits for access in own), default=0),
        )
    return found


def _widths(accesses: Counter[sass.Access], store: bool) -> dict[int, int]:
    found: dict[int, int] = {}
    for access, count in sorted(accesses.items(), key=lambda item: -item[0].bits):
        if access.store == store:
            found[access.bits] = found.get(access.bits, 0) + count
    return found
