"""Tables of tuned launch settings: the user's cache, and those shipped with tritonsyn.

A table is a JSON file per device. It is read once per process; changes replace it as a whole, one
writer at a time.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..system import read_json, reason, write_whole

VARIABLE = "TRITONSYN_CACHE_DIR"
_FORMAT = "tritonsyn launch configurations 2"

_SHIPPED = Path(__file__).parent

Entries = dict[str, dict[str, Any]]
"""``{"config": {...}}`` by key, with ``timer`` and ``cost`` where a sweep has found it."""


def key(kernel: str, dtype: torch.dtype | str, work: tuple[int, ...]) -> str:
    """The key of settings in a table: sizes are rounded up to a power of two."""
    buckets = "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in work)
    return f"{kernel} {str(dtype).removeprefix('torch.')} {buckets}"


def folder() -> Path:
    """Where the user's tables lie: ``$TRITONSYN_CACHE_DIR``, else in the user's cache."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonsyn"


def path(device: str) -> Path:
    """The user's table of a device, by its name or its architecture (``sm_90``)."""
    return folder() / _file(device)


def tables(devices: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The tables of a device in the order in which they count, each with its origin."""
    folders = (("user's cache", folder()), ("shipped table", _SHIPPED))
    return [(origin, where / _file(device)) for origin, where in folders for device in devices]


def shipped() -> list[Path]:
    """The tables shipped with tritonsyn, of GPUs on which they were measured."""
    return sorted(_SHIPPED.glob("*.json"))


def _file(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower().replace("_", "")).strip("-") + ".json"


@lru_cache
def read(path: Path) -> Entries:
    """The entries of a table, none if there is no such file; read once.

    Raises ``ValueError`` for a file that is not such a table, with what to do.
    """
    try:
        return _entries(read_json(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"a table of launch settings cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a table of launch settings: {error}; delete it") from None


def _entries(content: Any) -> Entries:
    """The entries of a table's content; ``ValueError`` for anything else."""
    found = content.get("format") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise ValueError(f"its format is {found!r:.80}, not {_FORMAT!r}")
    entries = content.get("entries")
    if not isinstance(entries, dict):
        raise ValueError("it has no object 'entries'")
    for name, entry in entries.items():
        settings = entry.get("config") if isinstance(entry, dict) else None
        if not isinstance(settings, dict) or "BLOCK" not in settings:
            raise ValueError(f"entry {name!r:.80} has no object 'config' with a BLOCK")
    return entries


def install(device: str, entries: Entries) -> Path:
    """Adds entries to the user's table of a device, or replaces those with the same keys.

    Others that do the same at that time wait. Raises ``OSError`` if the table cannot be written;
    it is then as it was.
    """
    target = path(device)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        read.cache_clear()
        content = {"format": _FORMAT, "device": device, "entries": {**read(target), **entries}}
        write_whole(target, json.dumps(content, indent=2, sort_keys=True) + "\n")
        read.cache_clear()
    return target


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies.

    Raises ``BlockingIOError`` where another has it and this one does not want to wait.
    """
    import fcntl  # Windows has none, and no Triton either

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
