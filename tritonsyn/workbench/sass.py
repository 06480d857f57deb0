"""Reads NVIDIA machine code: the global loads and stores, and the pointer that each belongs to.

A pointer argument lies in the constant bank, and a global address is that pointer plus an offset.
So every access is followed back, register by register, to the argument that its address came from.
"""

import re
from collections import Counter
from typing import NamedTuple


class Access(NamedTuple):
    """One kind of global memory instruction."""

    pointer: str
    """Name of the pointer argument; ``"?"`` where the address could not be followed to one."""
    store: bool
    bits: int
    """What one thread moves with one instruction."""


class _Instruction(NamedTuple):
    label: str
    """Of the place itself, in which case the rest is empty."""
    predicate: str
    opcode: str
    operands: str


_Origins = frozenset[str]
_State = dict[str, _Origins]
_NOWHERE: _Origins = frozenset()

_LINE = re.compile(
    r"^(\.L_\w+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;",
    re.MULTILINE,
)
_REGISTER = re.compile(r"\bU?R\d+\b")
_CONSTANT = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
_ADDRESS = re.compile(r"(?<!desc)\[(R\d+)(?:\.\w+)?(?:\+(UR\d+))?")
_LABEL = re.compile(r"`\((\.L_\w+)\)")
_GLOBAL = ("LDG", "LDGSTS", "STG")  # LDGSTS: to shared memory, without a register between
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_PAIR = re.compile(r"\.(WIDE|64)\b|^CS2R$")
_ROUNDS = 4  # a register is handed on from one turn of a loop to the next at most that often


def accesses(sass: str, pointers: dict[int, str]) -> Counter[Access]:
    """How often each kind of global access stands in the code of a kernel.

    ``sass`` is what ``nvdisasm -c`` prints; ``pointers`` names the pointer arguments by their
    offset in constant bank 0. An instruction in a loop counts once.
    """
    code = [_Instruction(*groups) for groups in _LINE.findall(sass)]
    arriving: dict[str, _State] = {}
    found: Counter[Access] = Counter()
    for _ in range(_ROUNDS):  # for what a loop carries from its end to its start
        found = _Walk(pointers, arriving).run(code)
    return found


def instruction_count(sass: str) -> int:
    """Instructions of a kernel, without the padding behind it."""
    return sum(bool(opcode) and opcode != "NOP" for _, _, opcode, _ in _LINE.findall(sass))


def has_loop(sass: str) -> bool:
    """Whether a kernel branches back, other than in the branch to itself behind its end."""
    passed: set[str] = set()
    here = ""
    for label, _, opcode, operands in _LINE.findall(sass):
        back = passed.intersection(_LABEL.findall(operands)) if opcode.startswith("BRA") else ()
        if any(name != here for name in back):
            return True
        passed.add(label)
        here = label  # empty behind an instruction
    return False


class _Walk:
    """One way through the code in order: which pointers each register was made from."""

    def __init__(self, pointers: dict[int, str], arriving: dict[str, _State]) -> None:
        self._pointers = pointers
        self._arriving = arriving
        """What is known at each label from the branches to it; grows from walk to walk."""
        self._state: _State = {}
        self._guarded: dict[str, _State] = {}
        """What predicated instructions wrote, for readers under the same predicate."""

    def run(self, code: list[_Instruction]) -> Counter[Access]:
        found: Counter[Access] = Counter()
        for instruction in code:
            if instruction.label:
                self._state = _merged(self._state, self._arriving.get(instruction.label, {}))
                self._guarded.clear()
            elif instruction.opcode.split(".")[0] in _GLOBAL:
                found[self._access(instruction)] += 1
            elif instruction.opcode.startswith("BRA"):
                self._branch(instruction)
            self._write(instruction)
        return found

    def _branch(self, instruction: _Instruction) -> None:
        for label in _LABEL.findall(instruction.operands):
            self._arriving[label] = _merged(self._state, self._arriving.get(label, {}))
        if not instruction.predicate:  # what follows is reached by its label only
            self._state = {}

    def _access(self, instruction: _Instruction) -> Access:
        addresses = _ADDRESS.findall(instruction.operands)  # of LDGSTS the last is the global one
        registers = [name for name in addresses[-1] if name] if addresses else []
        came = self._came(instruction, registers)
        widths = [_WIDTHS[part] for part in instruction.opcode.split(".") if part in _WIDTHS]
        return Access(
            pointer=next(iter(came)) if len(came) == 1 else "?",
            store=instruction.opcode.startswith("STG"),
            bits=widths[0] if widths else 32,
        )

    def _came(self, instruction: _Instruction, registers: list[str]) -> _Origins:
        guarded = self._guarded.get(instruction.predicate, {})
        known = (guarded.get(name, self._state.get(name, _NOWHERE)) for name in registers)
        return _NOWHERE.union(*known)

    def _write(self, instruction: _Instruction) -> None:
        target = instruction.operands.split(", ")[0]
        for state in self._guarded.values():
            if re.fullmatch(r"U?P\d", target):
                state.clear()  # the predicate may be this one
        for register, came in self._results(instruction).items():
            if instruction.predicate:
                otherwise = self._guarded.get(_opposite(instruction.predicate), {})
                before = otherwise.get(register, self._state.get(register, _NOWHERE))
                self._guarded.setdefault(instruction.predicate, {})[register] = came
                self._state[register] = came | before
            else:
                self._state[register] = came
                for state in self._guarded.values():
                    state.pop(register, None)

    def _results(self, instruction: _Instruction) -> _State:
        """The registers that an instruction writes, and the pointers that they came from.

        Addresses are followed by their lower halves; an upper half comes from nowhere.
        """
        opcode = instruction.opcode
        target, *operands = instruction.operands.split(", ")
        if not _REGISTER.fullmatch(target) or opcode.startswith("ST"):
            return {}
        name, first = re.split(r"(?=\d)", target, maxsplit=1)
        sources = ", ".join(_summands(opcode, operands))
        offsets = [int(offset, 16) for offset in _CONSTANT.findall(sources)]
        if opcode.startswith("LD"):  # what memory holds is no address, but the constants may be
            constant = "LDC" in opcode
            return {
                f"{name}{int(first) + i}": self._parameters([o + 4 * i for o in offsets * constant])
                for i in range(_registers(opcode))
            }
        came = self._came(instruction, _REGISTER.findall(sources)) | self._parameters(offsets)
        upper = {f"{name}{int(first) + 1}": _NOWHERE} if _PAIR.search(opcode) else {}
        return {target: came, **upper}

    def _parameters(self, offsets: list[int]) -> _Origins:
        return frozenset(self._pointers[o] for o in offsets if o in self._pointers)


def _merged(one: _State, other: _State) -> _State:
    return {
        name: one.get(name, _NOWHERE) | other.get(name, _NOWHERE)
        for name in one.keys() | other.keys()
    }


def _summands(opcode: str, operands: list[str]) -> list[str]:
    """The operands that an instruction does not multiply or shift, as no one does an address."""
    if re.match(r"U?IMAD\b", opcode) and ".IADD" not in opcode:
        return operands[-1:]
    if re.match(r"U?LEA\b", opcode):
        return [name for name in operands if not re.match(r"!?U?P[\dT]", name)][1:]
    return operands


def _opposite(predicate: str) -> str:
    return predicate[1:] if predicate.startswith("!") else f"!{predicate}"


def _registers(opcode: str) -> int:
    """How many registers a load writes."""
    return next((_WIDTHS[p] // 32 for p in opcode.split(".") if p in ("64", "128", "256")), 1)
