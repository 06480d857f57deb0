"""What PTX says of a kernel: which global memory it accesses, and how often each loop turns."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import NamedTuple

Number = int | None  # of a register; None where it depends on memory or on a float


class Access(NamedTuple):
    """A global load or store."""

    pointer: str  # the argument that its address comes from; "?" where that is not one of them
    store: bool
    bits: int


class Request(NamedTuple):
    """What a warp asks for in one access of its 32 threads."""

    at: int  # the instruction
    access: Access
    lines: int  # of 128 bytes, of the first warp
    sectors: int  # of 32 bytes
    gathered: bool  # the places come from memory, many in a warp; lines are as if all were 0
    places: frozenset[int]  # of a gather: its lines, of all warps
    depth: int  # loads, one after the other, that the address waits for
    after: int  # the last of these instructions, -1 for none
    reaches: tuple[int, ...]  # lines that numbers from memory move it by at most, by program


class Op(NamedTuple):
    """An instruction of PTX."""

    name: str  # "add.s64"
    target: str  # the register that it assigns, or "" (a load of several has the first)
    sources: tuple[str, ...]  # registers, numbers and special registers, in order
    guard: str  # "%p1" or "!%p1": it runs where that holds; "" for always
    text: str


_OP = re.compile(r"^\s+(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*?);", re.M)
_LABEL = re.compile(r"^(\$\w+):", re.M)
_WORD = re.compile(r"%[a-z]+(?:\d+|id\.\w)|-?\b0x[0-9a-fA-F]+\b|(?<![\w$.%])-?\d+\b")
_NO_TARGET = ("st", "bra", "ret", "bar", "cp", "red", "membar", "fence")
_LOAD_STORE = re.compile(
    r"\b(ld|st)(?:\.\w+(?:::\w+)?)*?\.global(?:\.[a-zA-Z]\w*::\w+)*(?:\.v(\d))?\.[bsuf](\d+)\s"
)
_COPY = re.compile(r"\bcp\.async\S*\s+\[[^]]*\],\s*\[[^]]*\],\s*(\w+)")
_PLACE = re.compile(r"\[\s*(%\w+)(?:\s*\+\s*(\d+))?\s*\]")
_POINTER = re.compile(r"\.param \.u64 \.ptr \S+ \.align \d+ \w+_param_(\d+)")
_PARAMETER = re.compile(r"\w+_param_(\d+)\]")


class Code:
    """The instructions of a kernel, and the labels among them."""

    def __init__(self, ptx: str) -> None:
        self.ops: list[Op] = []
        self.labels: dict[str, int] = {}
        self.pointers = set(map(int, _POINTER.findall(ptx)))
        threads = re.search(r"\.reqntid (\d+)", ptx)
        self.threads = int(threads[1]) if threads else 32
        marks = [(m.start(), m) for pattern in (_OP, _LABEL) for m in pattern.finditer(ptx)]
        for _, match in sorted(marks, key=lambda mark: mark[0]):
            if match.re is _LABEL:
                self.labels[match[1]] = len(self.ops)
            elif not match[2].startswith("."):
                self.ops.append(_op(match))
        self.targets: dict[str, list[Op]] = {}
        for op in self.ops:
            for register in _assigned(op):
                self.targets.setdefault(register, []).append(op)

    @property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each loop: jumps back, and where they lead."""
        found: dict[int, int] = {}
        for at, op in enumerate(self.ops):
            to = self.jump(op)
            if to is not None and to <= at:
                found[to] = max(at, found.get(to, 0))
        return sorted(found.items())

    def jump(self, op: Op) -> int | None:
        """Where an instruction jumps to."""
        return (
            self.labels.get(op.text.split()[-1].rstrip(";")) if op.name.startswith("bra") else None
        )

    def behind(self, register: str) -> set[str]:
        """A register and all that it was computed from, but not through memory."""
        seen: set[str] = set()
        todo = [register]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                for op in self.targets.get(at, ()):
                    if not _loads(op):
                        todo += [s for s in op.sources if s.startswith("%")]
        return seen

    def accesses(self, passed: Sequence[str]) -> list[tuple[int, Access]]:
        """Global loads and stores with their places in the code; ``passed``: the arguments."""
        origins = {
            op.target: passed[number]
            for op in self.ops
            if (number := _parameter(op)) in self.pointers and number is not None
        }
        found = []
        for at, op in enumerate(self.ops):
            if bits := _width(op):
                names = {origins[r] for r in self.behind(_place(op)) & origins.keys()}
                pointer = names.pop() if len(names) == 1 else "?"
                found.append((at, Access(pointer, op.name.startswith("st"), bits)))
        return found

    def requests(
        self, passed: Sequence[str], numbers: Mapping[int, int], grid: Sequence[int], slots: int
    ) -> list[Request]:
        """What a warp of a program asks for, each access once; arguments as below.

        Numbers that come from memory are taken to be 0, or up to ``slots``.
        """
        lanes = [_in_lane(self, numbers, grid, lane) for lane in range(32)]
        far = _in_lane(self, numbers, grid, 0, slots + 31)  # of bits, 32 are in a word
        others = [_in_lane(self, numbers, grid, lane) for lane in range(0, self.threads, 32)]
        draws: dict[str, list[tuple[int, ...]]] = {}
        depths: dict[str, int] = {}

        @cache
        def moves() -> list[list[dict[str, int]]]:
            """What programs all over the grid compute from numbers at rest and far to each side."""
            return [
                [_in_lane(self, numbers, grid, 0, far, program) for far in (0, -_FAR, _FAR)]
                for program in _programs(grid)
            ]

        def loads_behind(register: str) -> list[Op]:
            ops = [op for r in self.behind(register) for op in self.targets.get(r, ())]
            return [op for op in ops if _from_memory(op)]

        def waits_for(register: str) -> list[str]:
            return [_place(op) for op in loads_behind(register)]

        def depth(register: str) -> int:
            if register not in depths:
                depths[register] = 0  # in a loop an address may depend on itself
                waits = (depth(place) + 1 for place in waits_for(register))
                depths[register] = max(waits, default=0)
            return depths[register]

        def drawn(register: str) -> list[tuple[int, ...]]:
            """Where, in each thread, the loads stand that an address comes from."""
            if register not in draws:
                draws[register] = [()] * len(lanes)
                for place in waits_for(register):
                    own = [
                        (*key, lane.get(place, 0))
                        for key, lane in zip(drawn(place), lanes, strict=True)
                    ]
                    draws[register] = [a + b for a, b in zip(draws[register], own, strict=True)]
            return draws[register]

        found = []
        for at, access in self.accesses(passed):
            place = _place(self.ops[at])
            keys = drawn(place)
            # Within a few lines it does not matter which threads draw which place.
            apart = abs(far.get(place, 0) - lanes[0].get(place, 0))
            many = len(set(keys)) > _FEW
            near = many and 0 < apart < 128 * _FEW
            gathered = many and not near
            keys = [()] * len(lanes) if many else keys
            first = [lane.get(place, 0) + _offset(self.ops[at]) for lane in lanes]
            lines, sectors = (_units(first, keys, access.bits // 8, unit) for unit in (128, 32))
            if near:
                lines, sectors = (n * (1 + apart // u) for n, u in ((lines, 128), (sectors, 32)))
            of_all = frozenset(
                (lane.get(place, 0) + _offset(self.ops[at])) // 128
                for lane in (others if gathered else ())
            )
            after = max((self.ops.index(op) for op in loads_behind(place)), default=-1)
            moved = depth(place) and not gathered and not access.store
            reaches = tuple(map(_reach, moves(), repeat(place))) if moved else ()
            what = at, access, lines, sectors, gathered, of_all, depth(place), after
            found.append(Request(*what, reaches))
        return found

    def turns(self, numbers: Mapping[int, int], grid: Sequence[int]) -> list[float]:
        """How often each instruction runs in the program in the middle of the grid.

        ``numbers`` are those of the parameters that are whole numbers. What depends on memory is
        not known: such jumps are not taken, or ahead from the second time on, so that loops end.
        """
        steering = self._steering()
        values: dict[str, Number] = _place_in(grid, 0)
        seen: set[int] = set()
        counts: Counter[int] = Counter()  # by the first instruction of a straight run
        ends: dict[int, int] = {}
        at = start = 0
        left = _MOST
        while at < len(self.ops):
            op = self.ops[at]
            holds = _holds(op.guard, values)
            to = self.jump(op)
            if to is not None or op.name == "ret":
                counts[start] += 1
                ends[start] = at
                left -= 1
                if (op.name == "ret" and holds is not False) or left < 0:
                    break
                if holds is None and to is not None and to > at:
                    holds = at in seen
                    seen.add(at)
                at = start = to if to is not None and holds else at + 1
                continue
            if at in steering and holds is not False:
                values[op.target] = _computed(op, values, numbers) if holds else None
            at += 1
        executed = [0.0] * len(self.ops)
        for begin, count in counts.items():
            for place in range(begin, ends[begin] + 1):
                executed[place] += count
        return executed

    def _steering(self) -> set[int]:
        """Instructions on which jumps depend."""
        needed: set[str] = set()
        for op in self.ops:
            if op.guard and (op.name.startswith("bra") or op.name == "ret"):
                needed |= self.behind(op.guard.lstrip("!"))
        return {at for at, op in enumerate(self.ops) if op.target in needed}


_MOST = 200_000  # jumps
_FEW = 8  # places that the threads of a warp draw from memory: more are a gather
_FAR = 1 << 24  # steps, more than any sequence has
_SAMPLE = 16  # programs of a grid


def _programs(grid: Sequence[int]) -> list[tuple[int, ...]]:
    """Some programs, spread evenly along each axis of a grid, whatever the order of its tiles."""
    ratios = 0.6180339887, 0.7548776662, 0.8191725134  # golden ones, of one, two, three axes
    return [
        tuple(int(extent * (at * r % 1)) for extent, r in zip(grid, ratios, strict=False))
        for at in range(1, 1 + _SAMPLE)
    ]


def _reach(moves: Sequence[Mapping[str, int]], place: str) -> int:
    """The lines by which numbers from memory move an address to one side at most."""
    rest, *ends = (values.get(place, 0) for values in moves)
    return min(abs(end - rest) // 128 for end in ends)


def _place_in(grid: Sequence[int], lane: int, program: Sequence[int] = ()) -> dict[str, Number]:
    """What the special registers hold for a thread of a program, or of the one in the middle."""
    program = program or [extent // 2 for extent in grid]
    values: dict[str, Number] = {"%tid.x": lane}
    values |= {f"%ctaid.{a}": at for a, at in zip("xyz", (*program, 0, 0), strict=False)}
    return values | {f"%nctaid.{a}": n for a, n in zip("xyz", (*grid, 1, 1), strict=False)}


def _in_lane(
    code: Code,
    numbers: Mapping[int, int],
    grid: Sequence[int],
    lane: int,
    memory: int = 0,
    program: Sequence[int] = (),
) -> dict[str, int]:
    """The whole numbers that a thread computes before any loop turns, with one all over memory."""
    values = _place_in(grid, lane, program)
    for op in code.ops:
        if _from_memory(op):  # before it stands what it is where the load is masked
            values |= dict.fromkeys(_assigned(op), memory)
        elif op.target and op.target not in values:
            values[op.target] = _computed(op, values, numbers) or 0
    return {register: value or 0 for register, value in values.items()}


def accesses(
    ptx: str, passed: Sequence[str], spans: Sequence[tuple[int, int]] | None = None
) -> Counter[Access]:
    """Global loads and stores in PTX, by the pointers among the arguments that were passed.

    ``spans`` are the loops of which they count; None: all of the code.
    """
    return Counter(
        access
        for at, access in Code(ptx).accesses(passed)
        if spans is None or any(first <= at <= last for first, last in spans)
    )


def loops(ptx: str) -> list[tuple[int, int]]:
    """First and last instruction of each loop."""
    return Code(ptx).loops


def _op(match: re.Match[str]) -> Op:
    guard, name, rest = match[1] or "", match[2], match[3]
    words = _WORD.findall(rest)
    if name.split(".")[0] in _NO_TARGET or not words:
        return Op(name, "", tuple(words), guard, match[0])
    return Op(name, words[0], tuple(words[1:]), guard, match[0])


def _assigned(op: Op) -> tuple[str, ...]:
    """The registers that it assigns: a load of several has all of them in front."""
    vector = re.search(r"\{([^}]*)\}", op.text) if _loads(op) else None
    return tuple(re.findall(r"%\w+", vector[1])) if vector else (op.target,)


def _loads(op: Op) -> bool:
    return op.name.startswith(("ld.global", "ld.shared", "atom"))


def _from_memory(op: Op) -> bool:
    return op.name.startswith(("ld.global", "atom"))


def _place(op: Op) -> str:
    """The register of its address in global memory."""
    places = _PLACE.findall(op.text)
    return places[-1][0] if places else ""


def _offset(op: Op) -> int:
    """What is added to that register."""
    places = _PLACE.findall(op.text)
    return int(places[-1][1] or 0) if places else 0


def _width(op: Op) -> int:
    """Bits that a thread accesses in global memory; 0 for any other instruction."""
    if copied := _COPY.search(op.text):
        return 8 * int(copied[1], 0)
    match = _LOAD_STORE.search(op.text)
    return int(match[2] or 1) * int(match[3]) if match else 0


def _units(starts: Sequence[int], keys: Sequence[tuple[int, ...]], length: int, unit: int) -> int:
    """How many pieces of memory of one size accesses of one length touch, apart where keys are."""
    return len(
        {
            (key, piece)
            for start, key in zip(starts, keys, strict=True)
            for piece in range(start // unit, (start + length - 1) // unit + 1)
        }
    )


def _parameter(op: Op) -> int | None:
    match = _PARAMETER.search(op.text) if op.name.startswith("ld.param") else None
    return int(match[1]) if match else None


# -- whole numbers --------------------------------------------------------------------------------

_ARITHMETIC: dict[str, Callable[..., int]] = {
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "shl": lambda a, b: a << min(b % 2**32, 64),
    "shr": lambda a, b: a >> min(b % 2**32, 64),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "neg": lambda a: -a,
    "min": min,
    "max": max,
    "div": lambda a, b: int(a / b) if b else 0,
    "rem": lambda a, b: a - int(a / b) * b if b else 0,
    "bfe": lambda a, b, c: (a >> b) & ((1 << c) - 1),
}
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def _holds(guard: str, values: Mapping[str, Number]) -> bool | None:
    """Whether a guard lets its instruction run; None where that is not known."""
    if not guard:
        return True
    value = values.get(guard.lstrip("!"))
    return None if value is None else bool(value) != guard.startswith("!")


def _computed(op: Op, values: Mapping[str, Number], numbers: Mapping[int, int]) -> Number:
    name, *kinds = op.name.split(".")
    kind = kinds[-1] if kinds else ""
    if name == "ld":
        parameter = _parameter(op)
        return None if parameter is None else numbers.get(parameter)
    given = [values.get(s) if s.startswith("%") else int(s, 0) for s in op.sources]
    if kind.startswith("f") or any(k.startswith("f") for k in kinds if k[1:].isdigit()):
        return None
    if kind == "pred":
        return _logic(name, given)
    if name == "selp":
        first, second, which = given
        return None if which is None else first if which else second
    known = [value for value in given if value is not None]
    if len(known) < len(given) or not known:
        return None
    if name == "setp":
        same = [_wrapped(value, kind) for value in known]
        return int(_COMPARED[kinds[0]](*same)) if kinds[0] in _COMPARED else None
    if name == "not":
        return _wrapped(~known[0], kind)
    if name not in _ARITHMETIC:
        return None
    if name in ("mul", "mad") and kinds[0] == "wide":
        kind = f"{kind[0]}{2 * int(kind[1:])}"
    elif name in ("mul", "mad") and kinds[0] == "hi":
        return None
    try:
        return _wrapped(_ARITHMETIC[name](*known), kind)
    except TypeError:  # of a vector: more operands than the operation has
        return None


def _logic(name: str, given: Sequence[Number]) -> Number:
    """Of truth values, of which one may decide alone."""
    decides = {"and": 0, "or": 1}.get(name)
    if decides is not None and decides in given:
        return decides
    if None in given:
        return None
    known = [bool(value) for value in given]
    if name in ("and", "or"):
        return int(all(known) if name == "and" else any(known))
    if name == "xor":
        return sum(known) % 2
    return {"not": int(not known[0]), "mov": int(known[0])}.get(name)


def _wrapped(value: int, kind: str) -> int:
    """A number as a register of a kind holds it; bits count as signed."""
    bits = int(kind[1:]) if kind[1:].isdigit() else 64
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] in "sb" and value >> (bits - 1) else value
