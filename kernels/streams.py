"""What the kernels' traffic is made of, declared beside each kernel as ``STREAMS``.

A stream is an array that a kernel goes through in order. Coefficients, which programs share,
arrays that are accessed once per chunk or program, and gathers, whose neighbours may be far apart,
are not streams.
"""

from typing import Any, NamedTuple


class Stream(NamedTuple):
    """How often a kernel touches each element of an array that it goes through in order."""

    loads: int = 0
    stores: int = 0
    conditions: tuple[tuple[str, Any], ...] = ()
    """Arguments and the values that they must have for the array to be a stream."""

    def where(self, **conditions: Any) -> "Stream":
        """The same, where arguments have these values."""
        return self._replace(conditions=tuple(conditions.items()))


class Streams(NamedTuple):
    """The streams of a kernel, by pointer."""

    elements: tuple[str | int, ...]
    """Tile arguments and numbers. Their product is how many elements of each stream a program
    accesses in one pass through the kernel, or through the body of its loop."""
    pointers: dict[str, Stream]


def streams(*elements: str | int, **arrays: Stream) -> Streams:
    """Streams by the names of their pointers, without ``_ptr``."""
    return Streams(elements, {f"{name}_ptr": stream for name, stream in arrays.items()})


READ, WRITE, UPDATE = Stream(loads=1), Stream(stores=1), Stream(loads=1, stores=1)
