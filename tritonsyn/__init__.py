"""Exponential current synapses for PyTorch, on Triton kernels."""

from importlib.metadata import PackageNotFoundError, version

from . import functional, init, parametrizations, regularizers
from .backend import BackendError, get_backend, set_backend, use_backend
from .modules.conv import DelayedConv1d, DelayedConv2d
from .modules.delay import Delay
from .modules.linear import DelayedLinear
from .modules.parameters import parameter_groups
from .modules.record import RecordTensor
from .modules.synapse import AlphaCurrent, DoubleExponentialCurrent, SingleExponentialCurrent

try:
    __version__ = version("tritonsyn")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AlphaCurrent",
    "BackendError",
    "Delay",
    "DelayedConv1d",
    "DelayedConv2d",
    "DelayedLinear",
    "DoubleExponentialCurrent",
    "RecordTensor",
    "SingleExponentialCurrent",
    "functional",
    "get_backend",
    "init",
    "parameter_groups",
    "parametrizations",
    "regularizers",
    "set_backend",
    "use_backend",
]
