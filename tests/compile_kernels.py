"""Compiles every kernel variant for several GPUs without one; prints what each needs as JSON.

Run as a script, in a process without Triton's interpreter.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import KernelInterface

from tritonsyn import kernels
from tritonsyn.kernels.signatures import SIGNATURES, Variant

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def all_kernels() -> dict[str, KernelInterface]:
    """Every kernel of every module in ``kernels``."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.endswith("_kernel") and isinstance(value, KernelInterface):
                found[name] = value
    return found


def source(kernel: KernelInterface, variant: Variant) -> ASTSource:
    """The kernel with the types and constants of a variant, as a launch specialises it."""
    signature = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    special = {p.name for p in kernel.params if not p.do_not_specialize}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if variant.aligned and (kind.startswith("*") or (kind == "i32" and name in special))
    }
    return ASTSource(kernel, signature, variant.constants, attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack, shared and local memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def needs(name: str, index: int, architecture: int) -> dict[str, Any]:
    """What one variant of a kernel needs on one architecture."""
    variant = SIGNATURES[name][index]
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": variant.enable_fp_fusion}
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source(KERNELS[name], variant), target=target, options=options)
    used = resources(compiled.asm["cubin"])
    return {"kernel": name, "variant": index, "architecture": architecture, **used}


KERNELS = all_kernels()


def main(architectures: list[int]) -> None:
    tasks = [
        (name, index, architecture)
        for name, variants in SIGNATURES.items()
        for index in range(len(variants))
        for architecture in architectures
    ]
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(needs, *zip(*tasks, strict=True)))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
