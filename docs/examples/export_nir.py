"""Writes a layer with delays as a NIR file, reads it back, and compares the currents.

python docs/examples/export_nir.py  # needs nir and nirtorch, 3 s

NIR is a file format for spiking networks that many libraries and chips read. Its nodes here have
delays of whole steps, so the delays are rounded first. The layer read from the file then gives the
same currents.
"""

import tempfile
from pathlib import Path

import nir
import torch

from tritonsyn import DelayedLinear, DoubleExponentialCurrent
from tritonsyn.nir import from_nir, to_nir


def main() -> None:
    torch.manual_seed(0)
    synapse = DoubleExponentialCurrent.partialconstructor(5.0, 6.0, 3.0)  # pC, ms, ms
    layer = DelayedLinear(16, 8, step_time=1.0, synapse=synapse, delay=20.0, bias=True)
    layer.round_delays_()
    spikes = (torch.rand(100, 4, 16) < 0.1).float()  # 100 steps, 4 samples, 16 inputs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.nir"
        nir.write(path, to_nir(layer, spikes[0]))  # the input of one step tells the shapes
        graph = nir.read(path)
        print(
            f"wrote {path.stat().st_size} bytes: {len(graph.nodes)} nodes, {len(graph.edges)} edges"
        )
        read = from_nir(path, step_time=1.0)

    with torch.no_grad():
        written, found = layer(spikes), read(spikes)
    print(f"largest current {written.abs().max():.2f} nA")
    print(f"largest difference {(found - written).abs().max():.1e} nA")


if __name__ == "__main__":
    main()
