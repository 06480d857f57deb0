"""The operations on records as PyTorch expressions, for ``torch.compile`` to see through.

A compiled graph turns what is written in place into values and back; it fuses these expressions
itself, so that no launch of ours is needed in a step.
"""

from collections.abc import Sequence

import torch

from .common import chained, unchained


def write_rows(record: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The record with ``rows [L, ...]`` in the slots ``[L]``: in place where no graph is recorded.

    A compiled graph cannot write in place what its own backward pass may read again, so that a
    recorded write copies the record.
    """
    rows = rows != 0 if record.dtype == torch.bool else rows.to(record.dtype)
    if chained(record, rows):
        return record.index_copy(0, slots, rows)
    return unchained(record).index_copy_(0, slots, rows)


def step(
    x: torch.Tensor,
    newest: Sequence[torch.Tensor],
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The current after a step, and what each component then is, in the records' dtype."""
    injected = gain * x.to(gain.dtype)
    stored = [
        (value.to(gain.dtype) * decay + injected).to(value.dtype)
        for value, decay in zip(newest, decays, strict=True)
    ]
    return stored[0].clone() if len(stored) == 1 else stored[0] - stored[1], stored
