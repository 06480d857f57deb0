"""Installed versions, and atomic file writes."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version(package: str) -> str | None:
    """Version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_whole(path: Path, text: str) -> None:
    """Writes to a temporary file and renames it, so that no reader sees half a file."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
