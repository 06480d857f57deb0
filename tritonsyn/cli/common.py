"""What the commands share."""

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

USUAL_SHAPE = "1000x64x1024"
"""Steps, samples and synapses where none are given."""


class UserError(Exception):
    """Something the user can mend; told in one line."""


def needs_triton() -> None:
    """Refuses where there is no Triton to compile with."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("this command compiles kernels, and the package triton is not installed")


class Bar(Iterable[Item]):
    """The items, with a bar on stderr if they take longer than 2 s and tqdm is installed."""

    def __init__(self, items: Iterable[Item], total: int, quiet: bool = False) -> None:
        self._items: Any = items
        if not quiet and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._items = tqdm(items, total=total, delay=2, unit="config")

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def note(self, text: str) -> None:
        """Puts a remark behind the bar."""
        if hasattr(self._items, "set_postfix_str"):
            self._items.set_postfix_str(text)


def settings(config: dict[str, int]) -> str:
    """A launch configuration in a few words; what is as usual goes without saying."""
    words = {"BLOCK": "{}", "num_warps": "{} warps", "num_stages": "{} stages"}
    usual = {"num_stages": 3}
    return ", ".join(
        words.get(name, f"{name} {{}}").format(value)
        for name, value in config.items()
        if name == "BLOCK" or value != usual.get(name, 1)
    )
