"""Helpers for tests of numerical code: judged errors, poisoned memory, guarded buffers.

* :func:`assert_close_as_torch` requires a result to be about as accurate as plain PyTorch's.
* :func:`assert_identical` requires equal bits.
* :func:`poisoned_empty` fills what ``torch.empty`` returns with garbage, so that an element that
  nothing wrote shows up as a NaN.
* :func:`guarded` puts tensors into larger buffers and watches the margins, so that a write
  outside of a tensor fails the test, and a read outside of it gives NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

__all__ = ["assert_close_as_torch", "assert_identical", "guarded", "poison", "poisoned_empty"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_GARBAGE = -1
"""All bits set: a NaN of every floating dtype, and no valid bool."""
_NORMS: dict[str, Callable[[Tensor], float]] = {
    "maximum": lambda x: x.abs().max().item(),
    "root mean square": lambda x: x.square().mean().sqrt().item(),
}


def poison(tensor: Tensor) -> Tensor:
    """Fills a tensor with garbage: NaN, integers with all bits set, no valid bool.

    Args:
        tensor: any dense tensor; it is written in place.

    Returns:
        The tensor itself.
    """
    _bits(tensor).fill_(_GARBAGE)
    return tensor


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's memory as integers of the same size."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the block ``torch.empty`` and ``torch.empty_like`` return garbage, always."""

    def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: poison(function(*args, **kwargs))

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        yield


@contextmanager
def guarded(*tensors: Tensor, margin: int = 64) -> Iterator[list[Tensor]]:
    """Contiguous copies of tensors for a block, each with garbage before and after it.

    Args:
        tensors: what is copied.
        margin: elements of garbage on each side, at least 1; an odd number makes copies that are
            not aligned to 16 bytes.

    Yields:
        The copies, in the order of ``tensors``.

    Raises:
        AssertionError: at the end of the block, the margin of a tensor was written to; the message
            names the tensor.
    """
    buffers = [poison(t.new_empty(t.numel() + 2 * margin)) for t in tensors]
    inner = slice(margin, -margin)
    copies = [b[inner].view(t.shape).copy_(t) for b, t in zip(buffers, tensors, strict=True)]
    yield copies
    for i, buffer in enumerate(buffers):
        for side, edge in (("before", buffer[:margin]), ("after", buffer[-margin:])):
            written = int((_bits(edge) != _GARBAGE).sum())
            assert written == 0, f"{written} elements were written {side} guarded tensor {i}"


def assert_identical(actual: Tensor, expected: Tensor) -> None:
    """Requires two tensors to have the same dtype, shape and bits.

    A NaN equals every other, and 0.0 does not equal -0.0.

    Args:
        actual: the result under test.
        expected: what it has to be.

    Raises:
        AssertionError: they differ; the message names the first element that does.
    """
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, (
        f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    differs = (_bits(actual) != _bits(expected)).reshape(-1)
    if actual.is_floating_point():
        differs &= ~(actual.isnan() & expected.isnan()).reshape(-1)
    count = int(differs.sum())
    if count:
        first = int(differs.nonzero()[0])
        values = [t.reshape(-1)[first].item() for t in (actual, expected)]
        raise AssertionError(
            f"{count} of {differs.numel()} elements differ; the first, at flat index {first}, "
            f"is {values[0]!r}, expected {values[1]!r}"
        )


def assert_close_as_torch(
    actual: Tensor, exact: Tensor, plain: Tensor, *, factor: float = 2.0, scale: float | None = None
) -> None:
    """Requires a result to err at most ``factor`` times as much as plain PyTorch.

    Errors are judged in maximum and in root mean square. NaN and infinity must be where ``exact``
    has them.

    Args:
        actual: the result under test.
        exact: the same in float64.
        plain: the same from plain PyTorch operations in the dtype of ``actual``.
        factor: by how much the error may exceed that of ``plain``.
        scale: size of the numbers that the result is made of, where they cancel; None: that of
            ``exact``. One unit of rounding at this size is allowed: ``plain`` may be exact.

    Raises:
        AssertionError: the error is larger, or dtype or shape differ.
    """
    assert actual.dtype == plain.dtype, f"dtype {actual.dtype}, expected {plain.dtype}"
    assert actual.shape == exact.shape == plain.shape, (
        f"shapes {tuple(actual.shape)}, {tuple(exact.shape)}, {tuple(plain.shape)}"
    )
    rounding = torch.finfo(actual.dtype).eps
    actual, exact, plain = (t.detach().to(torch.float64) for t in (actual, exact, plain))
    finite = exact.isfinite()
    assert_identical(actual[~finite], exact[~finite])
    actual, exact, plain = (t[finite] for t in (actual, exact, plain))
    if not exact.numel():
        return
    for name, norm in _NORMS.items():
        error, size = norm(actual - exact), norm(exact) if scale is None else scale
        allowed = factor * norm(plain - exact) + rounding * size
        # Written so that a NaN fails.
        assert error <= allowed, f"{name} of the error is {error:.3g}, allowed is {allowed:.3g}"
