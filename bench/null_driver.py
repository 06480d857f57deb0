"""A driver for Triton that compiles for a GPU and launches nothing: times the host without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import tritonsyn.backend

Launch = tuple[tuple[str, str], tuple[int, ...], tuple[Any, ...]]
"""The name and the hash of a compiled kernel, the grid and the arguments of a launch."""
launches: list[Launch] | None = None
"""What was to be launched, where a list is given."""


class Launcher:
    """Of one compiled kernel; called instead of the GPU's driver."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._kernel = (metadata.name, metadata.hash)

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        _, _, _, metadata, enter, leave, *arguments = rest
        for hook in (enter, leave):
            if hook is not None:
                hook(metadata)
        if launches is not None:
            launches.append((self._kernel, (x, y, z), tuple(arguments)))


class _Utils:
    """What loading a binary needs."""

    def load_binary(self, *args: Any) -> tuple[int, ...]:
        module, function, registers, spills, threads = 1, 1, 0, 0, 1024
        return module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class NullDriver:
    """One H100, as far as Triton's Python code can tell."""

    utils = _Utils()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextmanager
def null_driver() -> Iterator[None]:
    """Lets kernels be "launched" on tensors of the CPU until the block ends."""
    before = driver._active
    driver.set_active(NullDriver())
    try:
        with mock.patch.object(tritonsyn.backend, "_triton_obstacle", lambda device_type: None):
            yield
    finally:
        driver.set_active(before)
