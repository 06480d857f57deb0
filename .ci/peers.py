"""Prints the requirements of the extra ``interop``, or with ``--wanted`` what those depend on.

Left out are packages that bring a torch of their own or belong to a chip that is not here, and
those of the extra ``nir``, which some would replace by old ones.
"""

import argparse
from importlib.metadata import requires

from packaging.requirements import Requirement
from requirements import of_extra

LEFT_OUT = {"torch", "torchvision", "torchaudio", "samna", "nir", "nirtorch"}


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--wanted", action="store_true")
found = list(filter(applies, of_extra("interop")))
if parser.parse_args().wanted:
    needed = [Requirement(line) for peer in found for line in requires(peer.name) or ()]
    found = [n for n in needed if n.name.lower() not in LEFT_OUT and applies(n)]
print(*sorted({str(requirement).split(";")[0] for requirement in found}), sep="\n")
