"""Prints the changelog's section of a version, if it is the version of pyproject.toml: TAG."""

import re
import sys
from pathlib import Path


def notes(tag: str, pyproject: str, changelog: str) -> str:
    """The section without its heading."""
    version = re.search(r'^version = "(.*)"$', pyproject, re.MULTILINE)
    if version is None or tag != f"v{version[1]}":
        raise SystemExit(f"the tag is {tag}, but pyproject.toml says {version and version[1]}")
    heading = rf"^## \[{re.escape(version[1])}\] - \d{{4}}-\d\d-\d\d\n"
    section = re.search(rf"{heading}(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise SystemExit(f"the changelog has no dated section [{version[1]}]")
    return section[1].strip()


if __name__ == "__main__":
    files = (Path(name).read_text("utf-8") for name in ("pyproject.toml", "docs/changelog.md"))
    print(notes(sys.argv[1], *files))
