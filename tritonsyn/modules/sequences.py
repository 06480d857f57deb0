"""The order of the axes of sequences."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import checks
from ..values import PackedSpikes
from .options import setting
from .state import Stateful


def is_sequence(x: Any, axes: int) -> bool:
    """Whether an input is a sequence: spikes as bits, or a tensor with so many axes."""
    given = getattr(x, "ndim", 0)
    if type(given) is not int:
        raise TypeError(
            f"x must be a tensor, but is a {type(x).__name__}, which has no number of axes yet: "
            "torch.fx.symbolic_trace cannot go through a module with state. Use a torch.fx.Tracer "
            "whose is_leaf_module is True for it, or torch.export"
        )
    return given == axes or isinstance(x, PackedSpikes)


class TakesSequences(Stateful):
    """A module that takes steps and whole sequences; these may have the batch before time."""

    _batch_first = False
    batch_first: bool = setting(
        "batch_first",
        "Whether sequences have the batch before time, ``[B, T, ...]``, given and returned.",
        checks.flag,
    )

    def _over_time(self, call: Callable[[Any], Any], x: Any) -> Any:
        """What a call gives for a sequence, which it takes and returns with time first."""
        if not self._batch_first:
            return call(x)
        checks.check_sequence(x)
        if isinstance(x, PackedSpikes):
            raise TypeError(
                "x must be a tensor (B, T, ...) with batch_first=True, but is PackedSpikes, which "
                "have time first"
            )
        if x.ndim < 2:
            raise checks.misshapen("x", x, "(B, T, ...) with batch_first=True")
        turned = x.transpose(0, 1)
        try:
            found = call(turned)
        except ValueError as error:
            if f"has shape {tuple(turned.shape)}" not in str(error):
                raise
            raise ValueError(f"{error}; batch_first=True put time first") from None
        if isinstance(found, Tensor):
            return found.transpose(0, 1)
        return found and tuple([part.transpose(0, 1) for part in found])
