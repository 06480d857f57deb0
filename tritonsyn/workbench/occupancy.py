"""How many warps of a kernel fit on a multiprocessor at once."""

from typing import NamedTuple

_REGISTERS = 65536  # per multiprocessor, in all generations below
_PARTITIONS = 4  # of a multiprocessor, each with its own registers
_REGISTER_UNIT = 256  # registers are given to a warp in portions of this size
_KIB = 1024


class Limits(NamedTuple):
    """What a multiprocessor has, and how many of them the largest common product has."""

    warps: int
    blocks: int
    shared: int
    """Bytes of shared memory, all blocks together."""
    reserved: int
    """Bytes of shared memory that the system takes for each block."""
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


def occupancy(target: str, registers: int, num_warps: int, shared: int) -> float:
    """:func:`resident_warps` as a part of what the multiprocessor can hold, 0 to 1."""
    return resident_warps(target, registers, num_warps, shared) / LIMITS[target].warps
