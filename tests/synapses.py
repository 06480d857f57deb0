"""The synapses as the tests make them."""

from typing import Any

import pytest
import torch

import tritonsyn

CLASSES: dict[str, Any] = {
    "single": tritonsyn.SingleExponentialCurrent,
    "double": tritonsyn.DoubleExponentialCurrent,
    "alpha": tritonsyn.AlphaCurrent,
}
PHYSICS: dict[str, dict[str, float]] = {
    "single": {"spike_charge": 10.0, "time_constant": 5.0},
    "double": {"spike_charge": 10.0, "tc_decay": 6.0, "tc_rise": 2.0},
    "alpha": {"spike_charge": 10.0, "time_constant": 3.0},
}
COMPONENTS = {
    "single": ("current",),
    "double": ("pos_current", "neg_current"),
    "alpha": ("current",),
}
"""Properties of the states that can be set."""
RECORDS = {
    "single": ("current_", "spike_"),
    "double": ("pos_current_", "neg_current_", "spike_"),
    "alpha": ("rise_", "current_", "spike_"),
}

every_kind = pytest.mark.parametrize("kind", list(CLASSES))
both = pytest.mark.parametrize("kind", ["single", "double"])  # those that inferno has


def make(kind: str, shape: Any = 3, step_time: float = 1.0, **options: Any) -> Any:
    """A synapse of this kind; ``options`` replace or extend its physics."""
    return CLASSES[kind](shape, step_time, **{**PHYSICS[kind], **options})


def spikes(*shape: int, seed: int = 0, rate: float = 0.4) -> torch.Tensor:
    """Random spikes, bool, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < rate


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Random float64 numbers, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def interpreted() -> bool:
    """Whether the kernels run, and in Triton's interpreter: some 30 ms for each launch."""
    return tritonsyn.get_backend() == "triton" and not torch.cuda.is_available()


def gradcheck(function: Any, inputs: Any) -> bool:
    """Gradients against finite differences; in the interpreter against the reference's, once."""
    if not interpreted():
        return torch.autograd.gradcheck(function, inputs)
    with tritonsyn.use_backend("reference"):
        expected = _gradients(function, inputs)
    for actual, wanted in zip(_gradients(function, inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-13)
    return True


def _gradients(function: Any, inputs: Any) -> tuple[torch.Tensor, ...]:
    """Outputs, and gradients of their weighted sum."""
    outputs = function(*inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    weighted = [(y * uniform(*y.shape, seed=i)).sum() for i, y in enumerate(outputs)]
    grads = torch.autograd.grad(sum(weighted), inputs, materialize_grads=True)
    return (*(y.detach() for y in outputs), *grads)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything that the module's state holds, copied."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
