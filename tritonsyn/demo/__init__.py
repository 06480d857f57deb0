"""The demonstration: a spiking network that has to remember reads scanned digits.

An image enters row by row, a few milliseconds each; the answer is due when the last row has passed.
The same network is trained twice: with delays that are learned, and with all delays frozen at zero.

* :mod:`.data`: the digits, and their spikes
* :mod:`.network`: delayed dense layers of both synapses, and the neurons
* :mod:`.training`: training and testing
* :mod:`.picture`: the picture
* :mod:`.experiment`: all of it, and the files it writes

Needs the extra: ``pip install "tritonsyn[demo]"``.
"""
