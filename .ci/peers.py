"""Prints the requirements of the extra ``interop``, or with ``--wanted`` what those depend on.

Left out are packages that bring a torch of their own or belong to a chip that is not here, and
those of the extra ``nir``, which some would replace by old ones.
"""

import argparse
from importlib.metadata import requires

import tomllib
from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "samna", "nir", "nirtorch"}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--wanted", action="store_true")
wanted = parser.parse_args().wanted
with open("pyproject.toml", "rb") as file:
    peers = [
        Requirement(line)
        for line in tomllib.load(file)["project"]["optional-dependencies"]["interop"]
    ]
if wanted:
    needed = [Requirement(line) for peer in peers for line in requires(peer.name) or ()]
    peers = [n for n in needed if n.name.lower() not in LEFT_OUT]
applicable = {
    str(p).split(";")[0] for p in peers if p.marker is None or p.marker.evaluate({"extra": ""})
}
print(*sorted(applicable), sep="\n")
