"""For pytest, besides the virtual GPU's own plugin: numbers that are not whole reach its kernels.

Its driver takes every number for an integer, so floating ones are handed over by their bits.
"""

import struct
from typing import Any

from vgpu.driver import Launcher

FORMATS = {"fp32": ("f", "i"), "fp64": ("d", "q")}
_launch = Launcher.__call__


def _with_bits(self: Launcher, *arguments: Any) -> None:
    """Runs a launch, whose last arguments are the kernel's."""
    first = len(arguments) - len(self.kinds)
    values = list(arguments)
    for place, kind in enumerate(self.kinds, first):
        if kind in FORMATS:
            floating, whole = FORMATS[kind]
            (values[place],) = struct.unpack(whole, struct.pack(floating, values[place]))
    _launch(self, *values)


Launcher.__call__ = _with_bits
