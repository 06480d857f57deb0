"""What holds for the adapters of every library: they hold a module, and nothing of it is lost."""

import copy
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
from synapses import same, snapshot, spikes, uniform
from torch import Tensor, nn

import tritonsyn

sys.modules.setdefault("samna", None)  # or the import of rockpool runs pip for it

KINDS = (*processes.KINDS, "conv1d", "conv2d")
every_module = pytest.mark.parametrize("kind", KINDS)
F64 = torch.float64


def build(kind: str, **options: Any) -> Any:
    """A module with three inputs or channels, in float64, the same at each call."""
    options = {"dtype": F64, **options}
    if kind in processes.KINDS:
        return processes.build(kind, **options)
    layer = tritonsyn.DelayedConv1d if kind == "conv1d" else tritonsyn.DelayedConv2d
    physics = tritonsyn.AlphaCurrent.partialconstructor(10.0, 3.0)
    made = layer(3, 2, 2, 1.0, synapse=physics, delay=3.0, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(uniform(*parameter.shape, seed=seed, low=0.2, high=2.5))
    return made


def drive(kind: str, steps: int = 6, batch: int = 2, seed: int = 0) -> Tensor:
    """A sequence for such a module, of spikes as numbers."""
    positions = {"conv1d": (4,), "conv2d": (3, 4)}.get(kind, ())
    return spikes(steps, batch, 3, *positions, seed=seed).to(F64)


def layers(charge: float = 20.0, dtype: torch.dtype = F64) -> list[tritonsyn.DelayedLinear]:
    """Two delayed layers, from three inputs to eight neurons, and from these to two."""
    torch.manual_seed(0)
    synapse = tritonsyn.SingleExponentialCurrent.partialconstructor(charge, 5.0)
    return [
        tritonsyn.DelayedLinear(*sizes, 1.0, synapse=synapse, delay=3.0, dtype=dtype)
        for sizes in ((3, 8), (8, 2))
    ]


def check_adapter(
    adapt: Callable[[Any], Any], call: Callable[[Any, Tensor], Tensor], kind: str, **options: Any
):
    """``call(adapter, x)`` gives the outputs of a sequence of steps, from rest."""
    module, x = build(kind, **options), drive(kind)
    adapter = adapt(module)
    expected = torch.stack([module(step) for step in x])
    module.clear()
    assert adapter.module is module
    assert type(module).__name__ in repr(adapter)
    held = {name: id(parameter) for name, parameter in adapter.named_parameters()}
    assert held == {f"module.{name}": id(p) for name, p in module.named_parameters()}
    torch.testing.assert_close(call(adapter, x), expected, rtol=1e-12, atol=1e-12)

    copied, sent = copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))
    for other in (copied, sent):
        assert other.module is not module
        assert same(snapshot(other), snapshot(adapter))
    before = snapshot(copied)
    call(adapter, drive(kind, seed=1))
    assert same(snapshot(copied), before)  # they share nothing
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    file.seek(0)
    copied.load_state_dict(torch.load(file))
    assert same(snapshot(copied), snapshot(adapter))
    assert set(adapter.state_dict()) == {f"module.{name}" for name in module.state_dict()}

    copied.module.clear()
    copied.to(torch.float32)
    assert call(copied, x.float()).dtype == torch.float32
    assert adapter.module is module
    assert all(parameter.dtype == F64 for _, parameter in adapter.named_parameters())


def check_refusals(adapt: Callable[[Any], Any], **options: Any) -> None:
    """Whatever has no state that an adapter knows."""
    record = tritonsyn.RecordTensor(1.0, 3.0, torch.zeros(2, 3))
    physics = tritonsyn.SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    held = adapt(build("single", **options))
    for wrong in (nn.Linear(3, 2), record, physics, tritonsyn.Delay, None, held):
        with pytest.raises(TypeError, match=r"^module must be a synapse, a delayed layer or a "):
            adapt(wrong)
