"""norse: a module that takes its state and returns it, ``y, state = module(x, state)``."""

from torch import Tensor, nn

from .common import Module, accepted


class ExplicitState(nn.Module):
    """A module of tritonsyn as a cell of norse; made by :func:`adapt`.

    Args:
        module: the module of tritonsyn, kept as ``module``. What it keeps between two calls counts
            for nothing.
    """

    module: Module

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    # norse finds out by the name `state` that the module has one.
    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs a step or a sequence from a given state.

        Args:
            x: input of the module, of a step ``[B, ...]`` or of a sequence ``[T, B, ...]``.
            state: what the last call returned; None for a cleared state.

        Returns:
            What the module gives, and the state afterwards: a tuple of tensors, each a copy of one
            record (see ``state()`` of the module), with gradients to what made it.

        Raises:
            TypeError, ValueError: the input or the state does not fit the module.
        """
        if state is None:
            self.module.clear()
        else:
            self.module.load_state(state)
        y = self.module(x)
        return y, self.module.state()


def adapt(module: Module) -> ExplicitState:
    """A module of norse that holds a synapse, a delayed layer or a ``Delay``.

    It works in ``SequentialState``, ``RecurrentSequential`` and ``Lift``. Each call copies the
    records in and out, ``K`` observations each; so run a sequence in one call where that is
    possible, without ``Lift``.

    Args:
        module: the module of tritonsyn; it stays the same object, kept as ``module``.

    Returns:
        The adapter.

    Raises:
        TypeError, ValueError: the module is of another kind, or has ``batch_first=True``.
    """
    return ExplicitState(accepted(module, batch_first=False))
