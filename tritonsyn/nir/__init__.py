r"""Models as graphs of the Neuromorphic Intermediate Representation, and back.

Needs the packages ``nir`` and ``nirtorch``: ``pip install "tritonsyn[nir]"``.

A graph of NIR is a set of differential equations, without steps. Between both stands one
convention: the value :math:`x[n]` of a step is an impulse at its time :math:`n \Delta t`, as large
as if it lasted the step, :math:`x[n]\,\Delta t`. Then a leaky integrator,
:math:`\tau \dot v = R\,x - v`, jumps by :math:`R\,x[n]\,\Delta t / \tau`, and it is a synapse of
charge :math:`Q` for

.. math:: R = Q / \Delta t,

a current that delivers the charge in one step. It is also what a library that integrates by Euler's
rule adds in a step, so that only the decay of a step differs there:
:math:`1 - \Delta t / \tau` is not :math:`\exp(-\Delta t / \tau)`.

B. Pedersen, Abreu et al., Neuromorphic Intermediate Representation: A Unified Instruction Set for
Interoperable Brain-Inspired Computing (2024), doi:10.1038/s41467-024-52259-9.
"""

from .reading import from_nir
from .writing import to_nir

__all__ = ["from_nir", "to_nir"]
