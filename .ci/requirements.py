"""Prints what an extra of pyproject.toml asks for, one requirement on a line.

``--floors`` prints the lowest versions that it and the package itself allow, as constraints for
pip. Needs packaging, and tomli where Python is 3.10.
"""

import argparse

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    PROJECT = tomllib.load(file)["project"]


def of_extra(name: str) -> list[Requirement]:
    """Its requirements, with those of the extras of ours that it names in their place."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][name]):
        if requirement.name == PROJECT["name"]:
            found += [r for extra in sorted(requirement.extras) for r in of_extra(extra)]
        else:
            found.append(requirement)
    return found


def floor(requirement: Requirement) -> str:
    """The lowest version that it allows; of two numbers, with any patch."""
    (lowest,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
    return f"{requirement.name}=={lowest}" + ".*" * (lowest.count(".") < 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", choices=PROJECT["optional-dependencies"])
    parser.add_argument("--floors", action="store_true")
    given = parser.parse_args()
    found = of_extra(given.extra)
    if given.floors:
        found += map(Requirement, PROJECT["dependencies"])
    lines = {floor(requirement) if given.floors else str(requirement) for requirement in found}
    print(*sorted(lines), sep="\n")


if __name__ == "__main__":
    main()
