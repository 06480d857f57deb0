"""What the kernels' traffic is made of, declared beside each kernel as ``STREAMS``.

A stream is an array that a kernel goes through in order. No streams are coefficients, which
programs share; what is touched once per chunk or program; and gathers, whose neighbours may lie
apart.
"""

from typing import Any, NamedTuple


class Stream(NamedTuple):
    """How often a kernel touches each element of an array that it goes through in order."""

    loads: int = 0
    stores: int = 0
    condition: tuple[str, Any] | None = None
    """An argument and the value that makes the array a stream; None: it always is one."""

    def where(self, argument: str, value: Any) -> "Stream":
        """The same, where an argument has this value."""
        return self._replace(condition=(argument, value))


class Streams(NamedTuple):
    """The streams of a kernel, by pointer."""

    elements: tuple[str | int, ...]
    """Tiles and numbers, whose product is the elements of each stream that a program touches in one
    pass of its code: the kernel, or the body of its loop."""
    pointers: dict[str, Stream]


def streams(*elements: str | int, **stems: Stream) -> Streams:
    """Streams by the stems of their pointers."""
    return Streams(elements, {f"{stem}_ptr": stream for stem, stream in stems.items()})


READ, WRITE, UPDATE = Stream(loads=1), Stream(stores=1), Stream(loads=1, stores=1)
