"""Checks that a wheel holds every file of the packages and nothing else: TREE WHEEL."""

import sys
import zipfile
from pathlib import Path

PACKAGES = {"tritonsyn": "tritonsyn", "kernels": "tritonsyn/kernels"}


def sources(tree: Path) -> set[str]:
    """Paths in the wheel of all files below the packages' folders."""
    return {
        f"{target}/{path.relative_to(tree / folder).as_posix()}"
        for folder, target in PACKAGES.items()
        for path in (tree / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def main() -> None:
    tree, wheel = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    wanted = sources(tree) | {"tritonsyn/py.typed"}
    problems = [f"missing from the wheel: {name}" for name in sorted(wanted - packed)]
    problems += [f"unexpected in the wheel: {name}" for name in sorted(packed - wanted)]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("missing from the wheel: LICENSE")
    if problems:
        sys.exit("\n".join([*problems, "Is a new package missing in pyproject.toml's list?"]))
    print(f"{wheel.name}: {len(packed)} files, all there")


if __name__ == "__main__":
    main()
