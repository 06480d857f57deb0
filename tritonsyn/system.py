"""Installed versions, files written as a whole, JSON from files that may hold anything."""

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def package_version(package: str) -> str | None:
    """Version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_ABANDONED = 60.0
"""Seconds after which a file that nobody has finished belongs to a process that died."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which then takes its place: no reader sees half of it.

    What processes that died have left there of the same file is removed.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text by :func:`written_whole`."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


_LARGEST = 1 << 28
"""Bytes of a JSON file beyond which it is none of ours."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises ``OSError`` where it cannot be read, and ``ValueError`` with the reason for anything else
    than JSON of a reasonable size.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """The value that JSON stands for; ``ValueError`` with the reason for anything else."""
    try:
        return json.loads(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def reason(error: BaseException) -> str:
    """An error of the machine in one line, with the file if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words = " ".join(str(error).split())
    return words or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
