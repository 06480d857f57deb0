"""What the machine code of a kernel says, and whether that is as it should be."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StreamReport:
    """An array that a kernel goes through in order."""

    itemsize: int
    touches: int
    """Loads and stores that each element needs."""
    moved: float
    """Bytes that the machine code moves per element."""
    bits: int
    """The narrowest access."""

    @property
    def minimum(self) -> int:
        """Bytes per element that cannot be done without."""
        return self.itemsize * self.touches


@dataclass(frozen=True)
class Report:
    """One variant of a kernel, compiled for one target in one configuration."""

    kernel: str
    variant: int
    """Index in ``SIGNATURES[kernel]``."""
    target: str
    """``"sm_90"``."""
    config: dict[str, int]
    types: dict[str, str]
    """Element type of each pointer."""
    aligned: bool
    registers: int
    """Per thread."""
    spills: int
    """Bytes per thread in local memory."""
    shared: int
    """Bytes per program."""
    instructions: int
    """Of the code as it stands; 0, as all that follows from the code is empty, if unread."""
    elements: int
    """Of a stream, that a program touches in one pass of its code."""
    loops: bool
    """Whether the code has a loop."""
    streams: dict[str, StreamReport]
    loads: dict[int, int]
    """Global loads in the code by their width in bits."""
    stores: dict[int, int]
    resident_warps: int
    """Warps that a multiprocessor holds at once."""
    occupancy: float
    """The same as a part of what it can hold."""

    @property
    def copies(self) -> int:
        """How often a loop's body stands in the code, where the compiler has unrolled it further.

        Then all streams are moved the same whole number of times more than they need.
        """
        ratios = {stream.moved / stream.minimum for stream in self.streams.values()}
        ratio = ratios.pop() if self.loops and len(ratios) == 1 else 1.0
        return int(ratio) if ratio >= 1 and ratio.is_integer() else 1

    @property
    def bytes_per_element(self) -> float:
        """What the machine code moves through the streams."""
        return sum(stream.moved for stream in self.streams.values()) / self.copies

    @property
    def minimum(self) -> int:
        """What the streams cannot do without, as the kernel's docstring counts it."""
        return sum(stream.minimum for stream in self.streams.values())

    def findings(self) -> list[str]:
        """What is not as it should be, each in words; empty if all is well.

        No spills; every element of a stream once per load and store; accesses of 128 bits, or all
        that a thread has of a stream of elements of one byte. Unaligned variants are exempt from
        the last: their accesses are as wide as an element.
        """
        found = [f"{self.spills} bytes per thread are spilled"] if self.spills else []
        if not self.occupancy:
            found.append("not even one program fits on a multiprocessor")
        for name, stream in self.streams.items():
            moved = stream.moved / self.copies
            if moved != stream.minimum:
                found.append(f"{name} moves {moved:g} bytes per element, not {stream.minimum}")
            if self.aligned and stream.bits < self._widest(stream):
                found.append(
                    f"{name} is accessed in {stream.bits} bits, not {self._widest(stream)}"
                )
        return found

    def _widest(self, stream: StreamReport) -> int:
        # What a thread has of a row of the tile, one byte each, may not make up 128 bits.
        row = self.elements // self.config.get("unroll", 1)
        bits = 8 * row // (32 * self.config["num_warps"])
        return min(128, bits) if stream.itemsize == 1 else 128

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            **asdict(self),
            "bytes_per_element": self.bytes_per_element,
            "minimum": self.minimum,
            "findings": self.findings(),
        }
