"""Functions of tensors that eager code calls as they are and ``torch.compile`` takes otherwise."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Body = Callable[..., Any]


def traced_as(other: Body) -> Callable[[Body], Body]:
    """Declares a function in whose place ``torch.compile`` traces another one."""

    def declare(body: Body) -> Body:
        @wraps(body)
        def call(*arguments: Any, **options: Any) -> Any:
            return (other if torch.compiler.is_compiling() else body)(*arguments, **options)

        return call

    return declare


def operator(fake: Body) -> Callable[[Body], Body]:
    """Declares a function as an operator ``tritonsyn::<name>`` without a gradient of its own.

    An autograd Function calls such operators in its forward and backward passes: in eager code
    that is a plain call, because a call of a registered operator costs several times that; where
    ``torch.compile`` traces the Function, it is one node of the graph. The body must not write to
    its arguments, nor return one of them. ``fake`` takes the same arguments and returns empty
    tensors of the right shapes and dtypes.
    """

    def declare(body: Body) -> Body:
        registered = torch.library.custom_op(f"tritonsyn::{body.__name__}", mutates_args=())(body)
        registered.register_fake(fake)
        return traced_as(registered)(body)

    return declare
