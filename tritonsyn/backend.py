"""Which implementation runs: Triton kernels or plain PyTorch, chosen openly.

The choice is made, first match wins, by the ``backend=`` argument of a call, the ``backend`` of a
module, :func:`set_backend` or :func:`use_backend`, the environment variable ``TRITONSYN_BACKEND``
(read once, at import). ``auto`` takes Triton for CUDA tensors, and the reference for CPU tensors
unless Triton's interpreter is on (``TRITON_INTERPRET=1``). Nothing falls back in silence: what
cannot run is an error that says why.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from .checks import shown

BACKENDS = ("auto", "triton", "reference")
VARIABLE = "TRITONSYN_BACKEND"


class BackendError(RuntimeError):
    """The backend asked for is unknown or cannot run here; the message says why."""


def check_backend(name: str, origin: str = "backend") -> str:
    """Returns ``name`` in lower case; raises :class:`BackendError` if no backend has that name."""
    if not isinstance(name, str) or name.lower() not in BACKENDS:
        raise BackendError(f"{origin} is {shown(name)}, but must be one of {', '.join(BACKENDS)}")
    return name.lower()


epoch = 0
"""How often it has changed what calls run that were made before: plans hold for one epoch."""


def new_epoch() -> None:
    """Drops all plans, because what they would launch may have changed."""
    global epoch
    epoch += 1


_unplanned = 0


@contextmanager
def without_plans() -> Iterator[None]:
    """Until the block ends no plan runs or is made: where launches are recorded, or do not run."""
    global _unplanned
    _unplanned += 1
    new_epoch()
    try:
        yield
    finally:
        _unplanned -= 1
        new_epoch()


def planning() -> bool:
    """Whether plans may be made."""
    return not _unplanned


# Checked at first use: an import that fails could not say why in one line.
_default = os.environ.get(VARIABLE) or "auto"


def get_backend() -> str:
    """The backend of calls and modules that name none.

    Returns:
        ``"auto"``, ``"triton"`` or ``"reference"``.

    Raises:
        BackendError: the environment variable ``TRITONSYN_BACKEND`` names one that does not exist.
    """
    return check_backend(_default, f"environment variable {VARIABLE}")


def set_backend(name: str) -> None:
    """Sets the backend of calls and modules that name none.

    It holds for the process, for all of its threads.

    Args:
        name: ``"auto"`` (Triton where the tensors are on a GPU, plain PyTorch on a CPU),
            ``"triton"`` or ``"reference"``; capitals do not matter.

    Raises:
        BackendError: there is no such backend. Whether it can run is found out by the first call.
    """
    global _default
    _default = check_backend(name)
    new_epoch()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Like :func:`set_backend`, until the block ends; for all threads of the process.

    Args:
        name: ``"auto"``, ``"triton"`` or ``"reference"``, as for :func:`set_backend`.

    Raises:
        BackendError: there is no such backend.

    Example:
        >>> synapse = SingleExponentialCurrent(2, 1.0, spike_charge=10.0, time_constant=5.0)
        >>> with use_backend("reference"):
        ...     current = synapse(torch.ones(1, 2))
    """
    previous = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


@cache
def interpreting() -> bool:
    """Whether Triton's interpreter is on. Triton reads it when kernels are defined, so once."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@cache
def _triton_obstacle(device_type: str) -> str | None:
    """Why Triton kernels cannot run on tensors of this device; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device_type not in ("cpu", "cuda"):
        return f"tritonsyn has no Triton kernels for device type {device_type!r}"
    if interpreting():
        return None
    if device_type == "cpu":
        return (
            "the tensors are on the CPU and Triton's interpreter is off "
            "(set TRITON_INTERPRET=1 before the start to run the kernels there, slowly)"
        )
    if torch.version.hip:
        return "this is PyTorch for ROCm, and the kernels are written and tested for NVIDIA's GPUs"
    return None


@cache
def _resolve(device_type: str, requested: str) -> tuple[str, str]:
    """The backend that runs on a device type, and the reason in words."""
    requested = check_backend(requested, f"environment variable {VARIABLE}")
    obstacle = _triton_obstacle(device_type)
    if requested == "triton":
        if obstacle:
            raise BackendError(f"backend 'triton' cannot run: {obstacle}")
        return "triton", "asked for"
    if requested == "reference":
        return "reference", "asked for"
    if obstacle is None:
        reason = "Triton's interpreter is on" if device_type == "cpu" else "the device is a GPU"
        return "triton", reason
    if device_type == "cuda":
        raise BackendError(
            f"backend 'auto' means Triton on a CUDA device, but {obstacle}; "
            "backend='reference' runs on plain PyTorch"
        )
    return "reference", obstacle


_pretending = False


@contextmanager
def pretend_triton() -> Iterator[None]:
    """Until the block ends every call takes Triton, on any device: for launches that do not run."""
    global _pretending
    previous, _pretending = _pretending, True
    try:
        with without_plans():
            yield
    finally:
        _pretending = previous


def resolve(device: torch.device, requested: str | None = None) -> str:
    """``"triton"`` or ``"reference"``: what runs for tensors on ``device``.

    ``requested`` is the backend a call or module names; None leaves it to the default.
    Raises :class:`BackendError` where that backend cannot run, with the reason.
    """
    if _pretending:
        return "triton"
    return _resolve(device.type, _default if requested is None else check_backend(requested))[0]


def explain(device: torch.device) -> tuple[str, str]:
    """The backend of calls that name none, and the reason; ``"unavailable"`` if none can run."""
    try:
        return _resolve(device.type, _default)
    except BackendError as error:
        return "unavailable", str(error)
