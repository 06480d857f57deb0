"""How long a launch would take, by arithmetic on its compiled code. Nothing is measured.

The time of a launch is the longest of six, and what its beginning costs:

* **issue**: the instructions of the machine code, those of a loop as often as it turns, at the rate
  of the fullest unit of a multiprocessor;
* **L1**: lines of 128 bytes that warps ask for;
* **gather**: lines of gathers, from L1 or from L2, at rates of their own;
* **L2**: sectors of 32 bytes that L1 does not have;
* **memory**: each array once, or what is accessed of it if that is less;
* **latency** (Little's law): a warp loads, waits and computes, turn after turn, and a
  multiprocessor holds so many warps at once.

The work of a multiprocessor is that of the one with most programs. What overlaps hides all but a
tenth of the shorter ones. Before them come the launch and the loads that wait for one another.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from . import sass
from .inspect import LIMITS, Listing, all_streams
from .ptx import Code, Request
from .record import passed_arguments

if TYPE_CHECKING:
    from ..launch.launcher import Launch


@dataclass(frozen=True)
class Machine:
    """What the arithmetic assumes of a GPU; rates per second unless said otherwise."""

    multiprocessors: int = 132
    clock: float = 1.755e9
    memory: float = 2.99e12
    """Bytes: measured on an H100 as a copy's reads and writes."""
    l2: float = 7.9e12
    """Bytes from L2: measured there."""
    l1: float = 128.0
    """Bytes of a multiprocessor in a clock."""
    gathered: float = 2.8
    """Lines of a gather that are found in L1, of a multiprocessor in a clock: measured."""
    gathered_l2: float = 0.35
    """The same from L2: measured."""
    latency: float = 0.65e-6
    """Seconds from a load to its value, in a busy memory."""
    l2_latency: float = 0.2e-6
    """The same where L2 has it."""
    launch: float = 1.2e-6
    """Seconds between launches of a graph: a measured copy of 4 MB less its bytes and latency."""
    operation: float = 2.3e-6
    """Seconds of a small operation of PyTorch."""

    def __str__(self) -> str:
        return (
            f"{self.multiprocessors} multiprocessors at {self.clock / 1e9:g} GHz, "
            f"{sass.RATES['all']:g} instructions of a warp in a clock; memory "
            f"{self.memory / 1e12:g} TB/s and L2 {self.l2 / 1e12:g} TB/s (measured), L1 "
            f"{self.l1:g} bytes in a clock; gathers {self.gathered:g} lines in a clock from L1, "
            f"{self.gathered_l2:g} from L2 (measured); latency {self.latency * 1e6:g} us, of L2 "
            f"{self.l2_latency * 1e6:g}; a launch {self.launch * 1e6:g} us, another operation "
            f"{self.operation * 1e6:g} us or its bytes"
        )


H100 = Machine()
OVERLAP = 0.1
"""Part of the shorter times that the longest does not hide."""


def machine_of(target: str) -> Machine:
    """An H100 with as many multiprocessors as the largest product of an architecture has."""
    return Machine(multiprocessors=LIMITS[target].multiprocessors)


@dataclass(frozen=True)
class Prediction:
    """What the arithmetic says of a launch; times in seconds."""

    kernel: str
    programs: int
    code: int
    """Instructions of the machine code as it stands."""
    registers: int
    spills: int
    """Bytes of a thread in local memory."""
    instructions: float
    """Of the machine code, for an element of the kernel's streams; 0 where it has none."""
    warps: float
    """Of the grid for each multiprocessor, of which some are resident at once."""
    in_flight: float
    """Bytes that a multiprocessor's warps load at once."""
    start: float
    """The launch, and the loads that wait for one another."""
    times: dict[str, float] = field(default_factory=dict)

    @property
    def bound(self) -> str:
        """The longest of the times."""
        return max(self.times, key=lambda name: self.times[name])

    @property
    def seconds(self) -> float:
        """The whole time."""
        longest = self.times[self.bound]
        return self.start + longest + OVERLAP * (sum(self.times.values()) - longest)


def predict(
    launch: "Launch", listing: Listing, machine: Machine = H100, slots: int = 1
) -> Prediction:
    """The time of a launch whose compiled code is given; ``slots`` that delays are spread over."""
    seen = _Seen.of(launch, listing, slots)
    done, traffic = _executed(seen), _traffic(seen, slots)
    programs, warps = math.prod(launch.grid), launch.config.num_warps
    # The multiprocessor with most programs, of which it holds so many at once.
    busiest = -(-programs // machine.multiprocessors)
    held = max(1, listing.report.resident_warps // warps)
    far = traffic.memory >= programs * traffic.l2 / 2
    wait = machine.latency if far else machine.l2_latency
    # A place that all threads share is a pointer or a delay, which another launch has just used.
    next_wait = wait if any(r.gathered for r in seen.requests) else machine.l2_latency
    alone = done.counts.total() / max(done.turns, 1.0) / machine.clock
    gathers = max(traffic.gathered / machine.gathered, traffic.missed / machine.gathered_l2)
    clocks = {
        "issue": warps * sass.clocks(done.counts),
        "L1": traffic.lines * 128 / machine.l1,
        "gather": gathers,
    }
    return Prediction(
        kernel=launch.name,
        programs=programs,
        code=listing.report.instructions,
        registers=listing.report.registers,
        spills=listing.report.spills,
        instructions=_per_element(seen, done),
        warps=programs * warps / machine.multiprocessors,
        in_flight=min(held, busiest) * traffic.ahead,
        start=machine.launch + wait + seen.depth * next_wait,
        times={
            **{name: busiest * count / machine.clock for name, count in clocks.items()},
            "L2": programs * traffic.l2 / machine.l2,
            "memory": traffic.memory / machine.memory,
            "latency": -(-busiest // held) * done.turns * (seen.waits * wait + alone),
        },
    )


class _Seen(NamedTuple):
    """A launch, its code, and what that says at the launch's sizes."""

    launch: "Launch"
    listing: Listing
    code: Code
    runs: list[float]  # how often each instruction of the PTX runs in a program
    requests: list[Request]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, launch: "Launch", listing: Listing, slots: int) -> "_Seen":
        passed = passed_arguments(launch)
        code = Code(listing.ptx)
        numbers = {at: a for at, a in enumerate(passed.values()) if isinstance(a, int)}
        runs = code.turns(numbers, launch.grid)
        tensors = {name: a for name, a in passed.items() if isinstance(a, torch.Tensor)}
        return cls(
            launch,
            listing,
            code,
            runs,
            code.requests([*passed], numbers, launch.grid, slots),
            tensors,
        )

    @property
    def depth(self) -> int:
        """Loads that wait for one another, before the last."""
        return max((request.depth for request in self.requests), default=0)

    @property
    def waits(self) -> int:
        """The same and the last, in a turn of the loop that does most; 0 if it loads nothing."""
        loads = [r for r in self.requests if not r.access.store and _of_main(self, r)]
        return 1 + max(r.depth for r in loads) if self.main and loads else 0

    @property
    def main(self) -> sass.Span | None:
        """The innermost loop of the PTX that does most."""
        inner = sass.innermost(self.code.loops)
        return max(inner, key=lambda s: self.runs[s[1]] * (s[1] - s[0]), default=None)


class _Executed(NamedTuple):
    """What a warp executes of the machine code."""

    counts: Counter[str]  # by name
    turns: float  # of the loop that does most, as the PTX has it


def _executed(seen: _Seen) -> _Executed:
    """Instructions of the machine code, as often as their loops turn.

    Innermost loops are those of the PTX in the same order, or, where their numbers differ, the
    largest is. One that the assembler has unrolled accesses memory more often in a turn, and turns
    less often in this proportion.
    """
    code = sass.read(seen.listing.sass)
    theirs = sass.loops(code)
    inner, own = sass.innermost(theirs), sass.innermost(seen.code.loops)
    if len(inner) != len(own):
        inner = sorted(inner, key=lambda s: s[0] - s[1])[:1]
        own = [seen.main] if seen.main else []
    weights = [1.0] * sass.ends(code) + [0.0] * (len(code) - sass.ends(code))
    accesses = {request.at for request in seen.requests}
    for span, source in zip(inner, own, strict=False):
        turns = seen.runs[source[1]]
        for around in theirs:
            if around != span and around[0] <= span[0] and span[1] <= around[1]:
                outer = [seen.runs[o[1]] for o in seen.code.loops if o[0] < source[0] <= o[1]]
                _weigh(weights, around, max([t for t in outer if t < turns], default=1.0))
        inside = sum(source[0] <= at <= source[1] for at in accesses)
        found = sass.memory(code, span)
        _weigh(weights, span, turns * (inside / found if inside and found else 1.0))
    counts: Counter[str] = Counter()
    for instruction, weight in zip(code, weights, strict=True):
        counts[instruction.name] += weight  # type: ignore[assignment]
    return _Executed(counts, seen.runs[seen.main[1]] if seen.main else 0.0)


def _weigh(weights: list[float], span: sass.Span, weight: float) -> None:
    weights[span[0] : span[1] + 1] = [weight] * (span[1] + 1 - span[0])


def _per_element(seen: _Seen, done: _Executed) -> float:
    """Instructions of a thread for an element of the kernel's streams."""
    arguments = dict(zip(seen.launch.kernel.arg_names, seen.launch.arguments, strict=False))
    arguments |= seen.launch.options
    declared = all_streams()[seen.launch.name]
    if not declared.pointers:
        return 0.0
    tile = math.prod(arguments[f] if isinstance(f, str) else f for f in declared.elements)
    elements = tile * seen.listing.report.copies * max(1.0, done.turns)
    return done.counts.total() * 32 * seen.launch.config.num_warps / elements


class _Traffic(NamedTuple):
    """What moves, of a program unless said otherwise."""

    lines: float  # of 128 bytes that warps ask L1 for
    gathered: float  # those of gathers
    missed: float  # those of gathers that L1 does not have
    l2: float  # bytes between L1 and L2, without gathers
    memory: float  # bytes between L2 and memory, of the launch
    ahead: float  # bytes that it loads at once


def _traffic(seen: _Seen, slots: int) -> _Traffic:
    programs, warps = math.prod(seen.launch.grid), seen.launch.config.num_warps
    lines = gathered = l2 = ahead = 0.0
    moved: dict[tuple[str, bool], float] = defaultdict(float)
    gathers: dict[str, list[Request]] = defaultdict(list)
    for request in seen.requests:
        access, often = request.access, warps * seen.runs[request.at]
        if not often:
            continue
        if request.gathered:
            gathers[access.pointer].append(request)
            continue
        lines += often * request.lines
        shared = request.depth and request.sectors > 1  # its place is a delay of the warp
        known = _reuse(seen, request, slots) if shared and not access.store else 1.0
        l2 += often * request.sectors * 32 / known
        moved[access.pointer, access.store] += programs * often * request.sectors * 32
        if not access.store and _of_main(seen, request):
            ahead += warps * request.sectors * 32
    missed = 0.0
    for name, requests in gathers.items():
        rows = seen.tensors[name].shape[0] if name in seen.tensors else 32
        for request in requests:
            often = warps * seen.runs[request.at]
            gathered += often * _spread(request.lines, rows, 32)
            moved[name, request.access.store] += (
                programs * often * _spread(request.sectors, rows, 32) * 32
            )
            if not request.access.store and _of_main(seen, request):
                ahead += warps * _spread(request.sectors, rows, 32) * 32
        missed += _missed(seen, requests, rows)
    memory = sum(
        min(count, seen.tensors[name].numel() * seen.tensors[name].itemsize)
        if name in seen.tensors
        else count
        for (name, _), count in moved.items()
    )
    return _Traffic(lines, gathered, missed, l2, memory, ahead)


def _of_main(seen: _Seen, request: Request) -> bool:
    """Whether a request stands in the loop that does most; without loops all do."""
    return seen.main is None or seen.main[0] <= request.at <= seen.main[1]


def _spread(places: float, rows: int, lanes: float) -> float:
    """Places of so many lanes that draw one of so many rows each, if they are so many in one."""
    each = lanes / max(places, 1)
    return places * rows * (1 - (1 - 1 / rows) ** each)


def _missed(seen: _Seen, requests: Sequence[Request], rows: int) -> float:
    """Lines of a program's gathers from one array that L1 does not have.

    In a turn of its loop a program finds a line again that another of its threads has asked for.
    """
    warps = seen.launch.config.num_warps
    own = {line for request in requests for line in request.places}
    turns = max(seen.runs[request.at] for request in requests)
    lanes = 32 * warps * len(requests)
    return turns * _spread(len(own), rows, lanes)


def _reuse(seen: _Seen, request: Request, slots: int) -> float:
    """How often a program with delayed rows reads a line, once it has it.

    Its outputs read stretches of one array that begin at delays, drawn from ``slots``, but not
    before the array does. Where the delays are the same in all turns of its loop, that walks along
    the array.
    """
    config = seen.launch.config
    unit = dict(zip(seen.launch.kernel.arg_names, seen.launch.arguments, strict=False)).get("unit")
    step = max(1, unit // 32) if isinstance(unit, int) else 1
    length = whole = max(1, config.BLOCK // 32)
    if seen.main is not None and request.after < seen.main[0]:
        whole *= round(seen.runs[request.at] / max(seen.runs[seen.main[0] - 1], 1))
    outputs = config.BLOCK_R
    found = [covered(outputs, slots, step, whole, length, reach) for reach in request.reaches]
    return outputs * whole * len(found) / sum(found)


def covered(outputs: int, slots: int, step: int, whole: int, tile: int, reach: int) -> float:
    """Lines that so many outputs read, each ``whole`` of them from a delay on, tile by tile.

    Delays are drawn from ``slots``, ``step`` lines apart. Tiles that would begin more than
    ``reach`` lines back begin just there.
    """
    window = (slots - 1) * step + whole
    starting = [0] * (window + 1)  # and ending, by their distance from the farthest line
    for delay in range(0, slots * step, step):
        first = min(delay, reach)
        after = min(delay - whole, reach - tile)
        starting[window - whole - first] += 1
        starting[window - whole - after] -= 1
    return sum(1 - (1 - count / slots) ** outputs for count in accumulate(starting))
