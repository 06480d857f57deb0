"""What a GPU does, measured by small kernels: the rates that ``tritonsyn check --gates`` assumes.

``python bench/probes.py --out FILE`` times them on this machine's GPU, the most valuable first, and
adds a line of JSON for each answer as it comes; answers that are there already stay. ``--deadline``
is after how many seconds none is begun.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from results import Answer, answers_in

UNFINISHED = 75
"""What the script exits with where time ran out; as the benchmarks do."""


@triton.jit
def read_kernel(
    x_ptr, out_ptr, window, step,
    OWN: tl.constexpr, CACHE: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums tiles ``step`` apart around a window of numbers, that all programs share or its own."""
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    base = pid * window if OWN else 0
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, ROUNDS, 4):
        for i in tl.static_range(4):
            place = base + (pid * BLOCK + (start + i) * step) % window
            total += tl.load(x_ptr + place + offs, cache_modifier=CACHE)
    tl.store(out_ptr + pid * BLOCK + offs, total)


@triton.jit
def gather_kernel(
    x_ptr, out_ptr, OWN: tl.constexpr, WINDOW: tl.constexpr, ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums numbers of a window from places that a generator draws, one for each thread."""
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    base = pid * WINDOW if OWN else 0
    state = offs * 747796405 + 1
    total = tl.zeros([BLOCK], tl.float32)
    for _start in range(0, ROUNDS, 4):
        for _i in tl.static_range(4):
            state = state * 1664525 + 1013904223
            total += tl.load(x_ptr + base + ((state >> 8) & (WINDOW - 1)))
    tl.store(out_ptr + offs, total)


@triton.jit
def multiply_kernel(out_ptr, factor, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Four chains of multiply-adds."""
    offs = tl.arange(0, BLOCK)
    a = offs.to(tl.float32)
    b, c, d = a + 1, a + 2, a + 3
    for _start in range(0, ROUNDS, 16):
        for _i in tl.static_range(16):
            a = a * factor + 1.0
            b = b * factor + 1.0
            c = c * factor + 1.0
            d = d * factor + 1.0
    tl.store(out_ptr + tl.program_id(0) * BLOCK + offs, a + b + c + d)


@dataclass(frozen=True)
class Size:
    """How large the probes are."""

    multiprocessors: int = 132
    programs: int = 8  # for each of them
    rounds: int = 512
    block: int = 1024
    l2: int = 1 << 22  # numbers that L2 holds
    l1: int = 1 << 12  # numbers that L1 holds, of a program
    warps: int = 8

    @property
    def grid(self) -> tuple[int]:
        """All programs."""
        return (self.multiprocessors * self.programs,)


TOY = Size(multiprocessors=2, programs=1, rounds=16, block=64, l2=1 << 10, l1=1 << 8, warps=1)
Clock = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""


def on_gpu(call: Callable[[], object]) -> float:
    """The median of many."""
    return 1e-3 * float(triton.testing.do_bench(call, return_mode="median"))


def once(call: Callable[[], object]) -> float:
    """Of a toy, in which the time means nothing."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Bench:
    """Where the probes run."""

    device: torch.device
    size: Size
    clock: Clock

    def numbers(self, count: int) -> torch.Tensor:
        """Whole numbers, so that sums are exact."""
        return torch.arange(count, device=self.device).remainder(7).float()

    def out(self) -> torch.Tensor:
        """What the programs write."""
        return torch.empty(self.size.grid[0] * self.size.block, device=self.device)

    def window(self, own: bool) -> tuple[int, torch.Tensor]:
        """Numbers in a window, and all windows: one in L2, or one in L1 for each program."""
        window = self.size.l1 if own else self.size.l2
        return window, self.numbers(self.size.grid[0] * window if own else window)

    def read(self, own: bool) -> tuple[torch.Tensor, Callable[[], object]]:
        """Tiles of a window; the output, and the call."""
        size, out = self.size, self.out()
        window, x = self.window(own)
        step, cache = (size.block, ".ca") if own else (size.grid[0] * size.block, ".cg")

        def call() -> None:
            read_kernel[size.grid](
                x, out, window, step, OWN=own, CACHE=cache, ROUNDS=size.rounds, BLOCK=size.block,
                num_warps=size.warps,
            )  # fmt: skip

        return out, call

    def gather(self, own: bool) -> tuple[torch.Tensor, Callable[[], object]]:
        """The same at places that are drawn."""
        size, out = self.size, self.out()
        window, x = self.window(own)

        def call() -> None:
            gather_kernel[size.grid](
                x, out, OWN=own, WINDOW=window, ROUNDS=size.rounds, BLOCK=size.block,
                num_warps=size.warps,
            )  # fmt: skip

        return out, call

    def multiply(self) -> tuple[torch.Tensor, Callable[[], object]]:
        """Arithmetic alone."""
        size, out = self.size, self.out()

        def call() -> None:
            multiply_kernel[size.grid](
                out, 0.5, ROUNDS=size.rounds, BLOCK=size.block, num_warps=size.warps
            )

        return out, call


EACH = "a ns and multiprocessor"


def _rates(bench: Bench) -> Iterator[Answer]:
    """Of L2, of L1, of arithmetic and of gathers."""
    size = bench.size
    accesses = size.grid[0] * size.block * size.rounds
    for name, own in (("L2", False), ("L1", True)):
        seconds = bench.clock(bench.read(own)[1])
        yield Answer(f"{name} to multiprocessors", 4 * accesses / seconds / 1e12, "TB/s")
    seconds = bench.clock(bench.multiply()[1])
    issued = 4 * accesses / 32 / seconds / 1e9
    yield Answer(
        "multiply-adds of a warp", issued / size.multiprocessors, "a ns and multiprocessor"
    )
    for name, own in (("L1", True), ("L2", False)):
        seconds = bench.clock(bench.gather(own)[1])
        lines = accesses / seconds / 1e9 / size.multiprocessors
        yield Answer(f"numbers of a gather from {name}", lines, EACH)


def _shifts(bench: Bench) -> Iterator[Answer]:
    """The sum of shifted rows by the longest delay: whether reuse in L1 decides."""
    from tritonsyn.workbench import Shape

    for slots in (1, 25, 251):
        shape = Shape(100, 256, 256, 256, slots)
        yield _launched(bench, "shift_sum_kernel", shape, None, f"shift_sum, B=256, K={slots}")


def _scans(bench: Bench) -> Iterator[Answer]:
    """The scan by its blocks and chunks."""
    from tritonsyn.workbench import LaunchConfig, Shape

    shape = Shape(1000, 64, 1024)
    for block in (128, 64, 32):
        for chunks in (1, 2):
            config = LaunchConfig(
                block, num_warps=1, UNROLL=16 if block < 128 else 8, chunks=chunks
            )
            name = f"scan from float, blocks of {block}, {chunks} chunks"
            yield _launched(bench, "exp_scan_kernel", shape, config, name)


def _launched(bench: Bench, kernel: str, shape: Any, config: Any, name: str) -> Answer:
    """The launches of a kernel in the call in which it is tuned."""
    from tritonsyn.workbench.record import launches_of

    launches = launches_of(kernel, shape, "float32", config, bench.device)
    return Answer(name, 1e3 * bench.clock(lambda: [one.run() for one in launches]), "ms")


PROBES: dict[str, Callable[[Bench], Iterator[Answer]]] = {
    "rates": _rates,
    "shifts": _shifts,
    "scans": _scans,
}
"""By name, the most valuable first."""


def probe(bench: Bench, path: Path, deadline: float, names: tuple[str, ...]) -> bool:
    """Asks what is not known yet; whether all was asked."""
    known = answers_in(path)
    path.write_text("".join(map(_line, known.items())), encoding="utf-8")
    begin = time.monotonic()
    for name in names:
        if name in known:
            continue
        if time.monotonic() - begin > deadline:
            return False
        answers = list(PROBES[name](bench))
        with path.open("a", encoding="utf-8") as file:
            file.write(_line((name, answers)))
        for answer in answers:
            print(f"{answer.question}: {answer.value:.4g} {answer.unit}", flush=True)
    return True


def _line(found: tuple[str, list[Answer]]) -> str:
    name, answers = found
    return json.dumps({"probe": name, "answers": answers}) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Probes this machine's GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a file, a line for each probe")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds (120)")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("the probes need a CUDA device", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    count = torch.cuda.get_device_properties(device).multi_processor_count
    bench = Bench(device, Size(multiprocessors=count), on_gpu)
    done = probe(bench, arguments.out, arguments.deadline, tuple(PROBES))
    return 0 if done else UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
