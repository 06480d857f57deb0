"""Tries the installed package, which must not be the one in the source tree: TREE."""

import math
import sys
from pathlib import Path

import torch

import tritonsyn
import tritonsyn.kernels


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    for package in (tritonsyn, tritonsyn.kernels):
        place = Path(str(package.__file__)).resolve()
        assert not place.is_relative_to(tree), f"{package.__name__} comes from the tree: {place}"

    synapse = tritonsyn.SingleExponentialCurrent(
        4, 1.0, spike_charge=1.0, time_constant=5.0, delay=3.0
    )
    torch.testing.assert_close(synapse(torch.ones(1, 4)), torch.full((1, 4), 0.2))
    present = synapse(torch.zeros(1, 4))
    torch.testing.assert_close(present, torch.full((1, 4), 0.2 * math.exp(-0.2)))

    # Before the present by: nothing, half a step, one step, and longer than it has existed.
    ago = torch.tensor([[0.0, 0.5, 1.0, 3.0]])
    expected = torch.tensor([[0.2 * math.exp(-0.2), 0.2 * math.exp(-0.1), 0.2, 0.0]])
    torch.testing.assert_close(synapse.current_at(ago), expected)
    print(f"{tritonsyn.__file__}: works")


if __name__ == "__main__":
    main()
