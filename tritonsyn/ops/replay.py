"""A call of which all work is launches, made again as these launches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode

from ..backend import resolve
from .common import Home, implementation, kind_of

_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty")
_VIEWS = (
    "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "squeeze", "t",
    "transpose", "unsqueeze", "view", "_unsafe_view", "_reshape_alias",
)  # fmt: skip


class _Watch(TorchDispatchMode):
    """Collects what is allocated, and notes whether PyTorch itself computes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: list[Tensor] = []
        self.computes = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if name in _ALLOCATIONS:
            self.fresh.append(result)
        elif name not in _VIEWS:
            self.computes = True
        return result


class State(NamedTuple):
    """What a call changes, for its replay."""

    home: Home
    """First the records, then carries, and the record of the spikes; then what is only read."""
    written: int
    """How many of these places are written."""
    records: int
    """Of components."""
    steps: int
    backend: str | None


ReplayPlan = Callable[[Tensor], Tensor | None]


def replayed(
    x: Tensor, call: Callable[[], Tensor], state: State
) -> tuple[Tensor, bool, ReplayPlan | None]:
    """The result of a call of ``x``, whether its replay was tried, and the replay if it can be had.

    That makes the call again without a graph. It returns None, having done nothing, if a graph is
    to be recorded or anything is otherwise.
    """
    home, written, records, steps, backend = state
    if not home.cursors or resolve(x.device, backend) != "triton":
        return call(), True, None
    fits, find = kind_of(x), home.finder()
    found = find() if fits(x) else None
    if found is None or _recorded(x, found, written):
        return call(), False, None
    memory = {tensor.untyped_storage().data_ptr() for tensor in found}
    if x.untyped_storage().data_ptr() in memory:  # whose an argument is could not be told
        return call(), False, None
    launcher = implementation("launcher", x.device, backend)
    slots = [cursor["_cursor"] for cursor in home.cursors]
    with launcher.capturing() as launches, _Watch() as watch:
        y = call()
    if watch.computes:
        return y, True, None
    spikes = found[written - 1]
    homes = [*found[:records], spikes, *found[records:]]
    given = launcher.Call(x, homes, records + 1, slots, steps, watch.fresh, y)
    replay, size = launcher.replayed(launches, given), len(spikes)
    if replay is None:
        return y, True, None
    precision = torch.get_float32_matmul_precision()
    strides = [tensor.stride() for tensor in found[written:]]

    def plan(x: Tensor) -> Tensor | None:
        if not fits(x) or (found := find()) is None or _recorded(x, found, written):
            return None
        if [tensor.stride() for tensor in found[written:]] != strides:
            return None
        if precision != torch.get_float32_matmul_precision():
            return None
        if x.untyped_storage().data_ptr() in memory:  # a sequence of it would be copied first
            return None
        increment_version(found[:written])
        y: Tensor = replay(x, [cursor["_cursor"] for cursor in home.cursors])
        home.moved(steps, size)
        return y

    return y, True, plan


def _recorded(x: Tensor, found: Sequence[Tensor], written: int) -> bool:
    """Whether a graph is to be recorded, or to be dropped."""
    if torch.is_grad_enabled():
        return x.requires_grad or any(tensor.requires_grad for tensor in found)
    return any(tensor.requires_grad for tensor in found[:written])
