"""rockpool: a ``TorchModule``. Without ``sys.modules["samna"] = None`` its import may run pip."""

from typing import Any

from rockpool.nn.modules.torch.torch_module import TorchModule, TorchModuleParameters
from torch import Tensor, nn

from .. import DelayedLinear, checks
from .common import Module, accepted, records

_FAMILY = {"weight": "weights", "bias": "biases", "delay": "delays", "spike_charge": "charges"}
_FAMILY |= dict.fromkeys(("time_constant", "tc_decay", "tc_rise"), "taus")


class Evolving(TorchModule):
    """A module of tritonsyn as one of rockpool; made by :func:`adapt`.

    Attributes:
        module: the module of tritonsyn.
    """

    class_name = property(lambda self: type(self.module).__name__, doc="Class of the module.")
    dt = property(lambda self: self.module.dt / 1000, doc="Length of a step in seconds.")

    def forward(self, x: Tensor) -> Tensor:
        """Runs a sequence on from the present state; its graph ends with the call.

        Args:
            x: input ``[B, T, N]``, or ``[T, N]`` of one sample.

        Returns:
            ``[B, T, out]``, what ``scan`` of the module gives.

        Raises:
            TypeError, ValueError: the input does not fit.
        """
        if checks.check_real("x", x).ndim not in (1, 2, 3):
            raise checks.misshapen("x", x, f"(B, T, {self.size_in}), or (T, {self.size_in})")
        y = self.module.scan(self._auto_batch(x)[0])
        self.module.detach_state()  # as rockpool's own do
        return y

    def _get_attribute_family(self, type_name: str, family: Any = None) -> TorchModuleParameters:
        found = dict(self.module.named_parameters()) if type_name == "Parameter" else {}
        if type_name == "State":
            found = dict(zip(records(self.module), self.module.state(), strict=True))
        given = (family,) if isinstance(family, str) else family
        kept = (n for n in found if not given or any(_FAMILY.get(p) in given for p in n.split(".")))
        return TorchModuleParameters({name: found[name] for name in kept})

    def set_attributes(self, new: dict[str, Any]) -> "Evolving":
        """Replaces parameters and state, as rockpool's functional calls do.

        Args:
            new: values by name, as ``parameters()`` and ``state()`` give them.

        Returns:
            The adapter itself.
        """
        state = self.state()
        self.module.load_state_dict({n: new[n] for n in new.keys() - state.keys()}, strict=False)
        if state.keys() & new.keys():
            self.module.load_state(tuple({**state, **new}[name] for name in state))
        return self

    def reset_state(self) -> "Evolving":
        """Clears the state of the module.

        Returns:
            The adapter itself.
        """
        self.module.clear()
        return self


def adapt(module: Module) -> Evolving:
    """A module of rockpool that holds a synapse, a ``DelayedLinear`` or a ``Delay``.

    Args:
        module: the module of tritonsyn, with ``batch_first=True`` and one axis of inputs; it stays
            the same object, kept as ``module``.

    Returns:
        The adapter.

    Raises:
        TypeError, ValueError: the module is of another kind, or has time first or several axes.
    """
    linear = isinstance(accepted(module, batch_first=True), DelayedLinear)
    shape = (module.in_features, module.out_features) if linear else getattr(module, "shape", ())
    if len(shape) != 1 + linear:
        raise ValueError(f"module must take [B, T, N], but is {checks.shown(module)}")
    made = Evolving(shape=shape, spiking_input=True)
    nn.Module.add_module(made, "module", module)  # an assignment would convert it
    return made
