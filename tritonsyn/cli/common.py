"""What the commands share."""

import importlib.util
from collections.abc import Iterable
from typing import Any, TypeVar

Items = TypeVar("Items", bound=Iterable[Any])

USUAL_SHAPE = "1000x64x1024"  # steps, samples and synapses where none are given
SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}  # options that take several values


class UserError(Exception):
    """Something the user can mend; told in one line."""


def needs_triton() -> None:
    """Refuses where there is no Triton to compile with."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("this command compiles kernels, and the package triton is not installed")


def bar(items: Items, total: int, quiet: bool = False) -> Items:
    """The items, with a bar on stderr if they take longer than 2 s and tqdm is installed."""
    if quiet or importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, delay=2, unit="config")


def settings(config: dict[str, int]) -> str:
    """A launch configuration in a few words; what is as usual goes without saying."""
    words = {"BLOCK": "{}", "num_warps": "{} warps", "num_stages": "{} stages"}
    usual = {"num_stages": 3}
    return ", ".join(
        words.get(name, f"{name} {{}}").format(value)
        for name, value in config.items()
        if name == "BLOCK" or value != usual.get(name, 1)
    )
