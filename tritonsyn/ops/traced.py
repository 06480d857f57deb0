"""The operations on records as PyTorch expressions, for ``torch.compile`` to see through.

A compiled graph turns what is written in place into values and back; it fuses these expressions
itself, so that no launch of ours is needed in a step.
"""

from collections.abc import Sequence

import torch

from .record import write_slots as write_rows

__all__ = ["step", "write_rows"]


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
