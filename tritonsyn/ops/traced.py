"""The operations on records as PyTorch expressions, for ``torch.compile`` to see through.

A compiled graph turns what is written in place into values and back; it fuses these expressions
itself, so that no launch of ours is needed in a step.
"""

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
