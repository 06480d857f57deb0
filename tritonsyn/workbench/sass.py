"""What machine code says of a kernel: its instructions, its loops, and the units they occupy."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Span = tuple[int, int]  # first and last instruction of a loop


class Instruction(NamedTuple):
    """An instruction of machine code."""

    place: int  # its address
    name: str  # "LDG"
    jump: int | None  # the address that it jumps to
    guarded: bool  # whether it runs only where a predicate holds


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?\s*([A-Z]\w*)([^;]*);")
_JUMP = re.compile(r"\b0x([0-9a-f]+)\b")


def read(text: str) -> list[Instruction]:
    """The instructions that ``cuobjdump --dump-sass`` prints, but for padding.

    The jump to itself at the end counts as one.
    """
    found = []
    for place, guard, name, rest in _LINE.findall(text):
        jump = _JUMP.search(rest) if name == "BRA" else None
        if name != "NOP":
            at = jump and int(jump[1], 16)
            guarded = bool(guard) or "P" in rest.split(",")[0].replace("UP", "P")
            found.append(Instruction(int(place, 16), name, at, guarded))
    return found


def loops(code: Sequence[Instruction]) -> list[Span]:
    """By their first and last instruction: jumps back, and where they lead."""
    places = {instruction.place: at for at, instruction in enumerate(code)}
    found: dict[int, int] = {}
    for at, instruction in enumerate(code):
        to = instruction.jump
        if to is not None and to < instruction.place:
            first = min((n for p, n in places.items() if p >= to), default=at)
            found[first] = max(at, found.get(first, 0))
    return sorted(found.items())


def innermost(spans: Sequence[Span]) -> list[Span]:
    """Loops that hold no other."""
    return [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]


_MEMORY = {"LDG", "STG", "LDGSTS", "ATOM", "ATOMG", "RED", "UBLKCP"}


def memory(code: Sequence[Instruction], span: Span) -> int:
    """Instructions of a loop that access global memory."""
    return sum(instruction.name in _MEMORY for instruction in code[span[0] : span[1] + 1])


def ends(code: Sequence[Instruction]) -> int:
    """Where the usual path ends; behind it are only paths that are seldom taken."""
    exits = [at for at, i in enumerate(code) if i.name == "EXIT" and not i.guarded]
    return exits[0] + 1 if exits else len(code)


# Instructions of a warp that a multiprocessor with compute capability 9.0 begins in a clock, by the
# unit that they occupy. Source: NVIDIA, CUDA C++ Programming Guide, "Arithmetic Instructions".
RATES = {"all": 4.0, "multiply": 2.0, "integer": 2.0, "double": 2.0, "memory": 1.0, "slow": 0.5}
_UNITS = {
    "integer": """IADD3 IADD VIADD LOP3 PLOP3 SHF LEA ISETP SEL FSEL FSETP FMNMX IMNMX VIMNMX
        VIADDMNMX PRMT IABS P2R R2P SGXT BMSK I2FP FCHK VABSDIFF""",
    "multiply": "IMAD",
    "double": "DADD DMUL DFMA DSETP",
    "memory": "LDG STG LDGSTS LDS STS LDSM LDL STL ATOM ATOMG ATOMS RED SHFL",
    "slow": "I2F F2I F2F FRND MUFU POPC FLO BREV",
}
_UNIT = {name: unit for unit, names in _UNITS.items() for name in names.split()}


def clocks(counts: Counter[str]) -> float:
    """Clocks of a multiprocessor for so many instructions of a warp by name: the fullest unit."""
    filled = Counter({"all": float(counts.total())})
    for name, count in counts.items():
        if name in _UNIT:
            filled[_UNIT[name]] += count
    return max(count / RATES[unit] for unit, count in filled.items())
