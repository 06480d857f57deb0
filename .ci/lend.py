"""Links installed distributions and all that they require into another environment.

Run by the environment that has them: ENVIRONMENT NAME... A torch costs a minute and gigabytes
to install twice. Nothing else is lent, so a dependency that a package fails to declare is missed.
"""

import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> set[str]:
    """The names and everything that they require, directly or not."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # not needed on this platform
        found.add(name)
        parsed = [Requirement(text) for text in requires]
        names += [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def main() -> None:
    environment, names = sys.argv[1], sys.argv[2:]
    paths = {"base": environment, "platbase": environment}
    target = Path(sysconfig.get_path("purelib", vars=paths))
    for name in closure(names):
        lent = distribution(name)
        tops = {file.parts[0] for file in lent.files or []} - {"..", "__pycache__"}
        for top in tops:
            link = target / top
            if not link.exists():
                link.symlink_to(Path(str(lent.locate_file(top))))


if __name__ == "__main__":
    main()
