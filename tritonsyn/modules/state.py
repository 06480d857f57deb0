"""What all modules with state share: copies and conversions, saved states, refused calls."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import checks, ops
from ..backend import planning
from ..ops.common import no_forward_mode, ordinary, refuse_transforms, without_graph
from ..ops.operator import traced_as

_NOT_COPIED = ("_plans", "_kinds", "_unrolling")

_PLAIN = (Tensor, int, tuple, type(None))
"""Types, subclasses apart, of attributes that no module registers."""


@traced_as(nullcontext)
def ordinary_tensors() -> AbstractContextManager[object]:
    """In inference mode too, makes tensors that training may use later; as there, no graph."""
    return _without_inference() if torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _without_inference() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def recorded_unless(inplace: bool) -> AbstractContextManager[object]:
    """Records a graph where that is on, but not of what is asked to write in place."""
    return without_graph() if checks.flag("inplace", inplace) else nullcontext()


def end_graph(why: str, of_export: str | None = None) -> None:
    """Ends a graph here; where it must be whole, with these words at the head of the error.

    Others may be said in ``torch.export``.
    """
    from torch._dynamo.exc import Unsupported
    from torch._guards import TracingContext

    if TracingContext.try_get() is not None:  # where the graph has ended, this runs once more
        # Asked here because torch 2.11 takes it for true where a graph asks.
        raise Unsupported(of_export if of_export and torch.compiler.is_exporting() else why)


def _refuse_to_be_compiled(why: str) -> None:
    """The same, and an error too where the graph has ended."""
    end_graph(why)
    raise RuntimeError(why)


# As by torch.compiler.assume_constant_result, which would import the compiler with the package:
# the functions run while a graph is made.
for _function in (end_graph, _refuse_to_be_compiled):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_not_compiled(why: str) -> None:
    """Raises within a function that is compiled, also between its graphs."""
    compiler = torch._C._dynamo.eval_frame
    if torch.compiler.is_compiling() or compiler.get_eval_frame_callback() is not None:
        _refuse_to_be_compiled(why)


@traced_as(lambda: None)
def check_run() -> None:
    """Raises where a run would be repeated, frozen or transformed behind the module's back.

    Gradient checkpointing repeats it in the backward pass, when the state is another one;
    ``torch.jit.trace`` makes a constant of the pointer.

    Raises:
        RuntimeError, NotImplementedError: under these, under forward mode, and under transforms
            of ``torch.func``.
    """
    if ordinary():
        return
    refuse_transforms()
    if forward_ad._current_level >= 0:
        raise no_forward_mode()
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a module with state was called in a backward pass, as gradient checkpointing does, "
            "but its state has moved on since; checkpoint the functional form with the state as an "
            "argument, such as tritonsyn.functional.exp_scan"
        )
    if torch._C._is_tracing():
        raise RuntimeError(
            "torch.jit.trace would make constants of pointers and state; use torch.export or "
            "torch.compile with capturable=True"
        )


@traced_as(lambda: None)
def check_read() -> None:
    """The same for a read: only a repeated one records a graph in the backward pass."""
    repeated = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
    if repeated or torch._C._is_tracing():
        check_run()


def converted(tensor: Tensor, fn: Callable[[Tensor], Tensor], keep_dtype: bool = False) -> Tensor:
    """What a conversion of a module makes of a part of its state, in contiguous memory.

    It is shown one axis, so that no memory format permutes the others. Bool and integers keep
    their dtype.
    """
    flat = tensor.reshape(-1)
    result = fn(flat)
    if result.dtype != flat.dtype and (keep_dtype or not flat.is_floating_point()):
        result = flat.to(result.device)
    # Not a view, which could not be written in place where a graph is recorded.
    return tensor if result is flat else torch.ops.aten._unsafe_view(result, tensor.shape)


class Stateful(nn.Module):
    """A module with state that copies, conversions and saved states treat with care."""

    _plans: Mapping[str, Callable[..., Any]] = MappingProxyType({})
    """By the name of a method what it does in place of its general path: a call of the kind that
    was last made, prepared. A plan returns None, and has done nothing, if anything is otherwise."""
    _kinds: Mapping[str, Any] = MappingProxyType({})
    """By the same names dtype and shape of the input of the last call of the general path."""
    planning: ClassVar[bool] = True
    """Whether plans are made; for tests."""
    _constants: ClassVar[tuple[str, ...]] = ()
    """Names of the physical constants."""
    _delay_names: ClassVar[tuple[str, ...]] = ()
    """Names of the delays that are learned."""

    @traced_as(lambda module, name, *arguments: None)
    def _again(self, name: str, *arguments: Any) -> Any:
        """What the plan of a method returns; None where there is none."""
        plan = self._plans.get(name)
        return None if plan is None else plan(*arguments)

    @traced_as(lambda module, name, x, make: None)
    def _plan(self, name: str, x: Tensor, make: Callable[[], Callable[..., Any] | None]) -> None:
        """Makes the plan of a method that was called with an input of this kind twice in a row."""
        kind = x.dtype, x.shape
        if self._kinds.get(name) != kind:
            self.__dict__["_kinds"] = {**self._kinds, name: kind}
        elif self.planning and planning() and (made := make()) is not None:
            self.__dict__["_plans"] = {**self._plans, name: made}

    @traced_as(lambda module, name, x, call, state: call())
    def _replayed(
        self, name: Any, x: Any, call: Callable[[], Tensor], state: Callable[[], ops.State | None]
    ) -> Tensor:
        """What a call returns; where its kind comes twice in a row its replay becomes the plan."""
        if x.__class__ is not Tensor or x.is_nested:
            return call()
        kind = x.dtype, x.shape
        if self._kinds.get(name) != kind:
            self.__dict__["_kinds"] = {**self._kinds, name: kind}
            self.__dict__["_plans"] = {n: plan for n, plan in self._plans.items() if n != name}
            return call()
        # One that could not be made is not tried again.
        tryable = self.planning and planning() and self._plans.get(name, call) is not None
        given = state() if tryable else None
        if given is None:
            return call()
        y, tried, plan = ops.replayed(x, call, given)
        if tried:
            self.__dict__["_plans"] = {**self._plans, name: plan}
        return y

    @traced_as(lambda module: None)
    def _drop_plans(self) -> None:
        self.__dict__.pop("_plans", None)

    _unrolling: Any = None
    """The run that takes its steps, within a block of ``unrolled``."""
    _lent = False
    """Whether its state is on the tape of such a run."""

    def check_at_home(self) -> None:
        """Raises ``RuntimeError`` while the state is on a tape."""
        if self._lent:
            raise RuntimeError(
                "inside of `with layer.unrolled(...)` the state of its synapses is on a tape: only "
                "the layer may be called, step by step; read, change, save or move the state when "
                "the block has ended"
            )

    def _check_run(self) -> None:
        """Raises where the state cannot be changed now; see :func:`check_run`."""
        self.check_at_home()
        check_run()

    def _check_read(self) -> None:
        """Raises where the state cannot be read now; see :func:`check_read`."""
        self.check_at_home()
        check_read()

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) in _PLAIN and name in self.__dict__ and not torch.compiler.is_compiling():
            # Torch would do the same, but first look for the name among all that it registers.
            object.__setattr__(self, name, value)
            return
        # A property is asked first, where torch would register the value under its name.
        registered = isinstance(value, nn.Parameter | nn.Buffer | nn.Module)
        if registered and isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # -- copies and conversions ---------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.check_at_home()
        self._drop_plans()
        with ordinary_tensors():
            return super()._apply(fn, recurse)

    def _values(self) -> dict[str, Any]:
        """The attributes as copies and pickles take them over."""
        self.check_at_home()
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_COPIED}

    def __getstate__(self) -> dict[str, Any]:
        return self._values()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with ordinary_tensors():
            twin.__setstate__(copy.deepcopy(self._values(), memo))
        return twin

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "torch.nn.DataParallel makes copies for one call and drops them with their state; use "
            "torch.nn.parallel.DistributedDataParallel"
        )

    # -- saved states -------------------------------------------------------------------------

    def own_keys(self) -> tuple[set[str], set[str]]:
        """Keys that a saved state must have, and may have, besides parameters and buffers."""
        return set(), set()

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        """Raises ``RuntimeError`` if a saved state does not fit, before anything is loaded.

        Keys are left to torch if they do not matter, or if hooks of the module change them.
        """
        self.check_at_home()
        if strict and not self._load_state_dict_pre_hooks:
            _check_keys(self, state_dict, prefix)
        checks.check_saved_shapes(saved_by_torch(self), state_dict, prefix)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        frame = _loading() or {"self": self, "state_dict": state_dict, "strict": strict}
        root, strict_load = frame["self"], bool(frame["strict"])
        if root is self or _has_hooks(root):
            self.check_state(state_dict, prefix, strict_load)
        elif self is next(stateful(root))[1]:
            # The first to be asked judges for all, before any of them has changed.
            for path, module in stateful(root):
                module.check_state(frame["state_dict"], f"{path}.", strict_load)
        found: list[str] = []
        lists = missing, found, errors
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        own = {prefix + key for key in set.union(*self.own_keys())}
        unexpected += [key for key in found if key not in own]


def _loading() -> dict[str, Any] | None:
    """Names and values of the ``load_state_dict`` in progress: the root, its state, ``strict``.

    Torch judges a state when all is loaded, and tells the modules that it is strict whatever it was
    told.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals


def _has_hooks(root: nn.Module) -> bool:
    """Whether hooks of other modules may change keys after the first module has been loaded."""
    # Not by modules(), which is a dictionary in rockpool.
    others = (module for _, module in root.named_modules() if not isinstance(module, Stateful))
    return any(module._load_state_dict_pre_hooks for module in others)


def stateful(root: nn.Module) -> Iterator[tuple[str, Stateful]]:
    """The modules with state and their paths, in the order of loading, without those inside."""
    within = None
    for path, module in root.named_modules(remove_duplicate=False):
        if within is not None and path.startswith(within):
            continue
        if isinstance(module, Stateful):
            within = f"{path}." if path else ""
            yield path, module


def _check_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Every entry of a module and of those in it is there, and no other."""
    needed, allowed = set(), set()
    for path, part in module.named_modules(prefix=prefix.rstrip("."), remove_duplicate=False):
        must, may = part.own_keys() if isinstance(part, Stateful) else (set(), set())
        place = f"{path}." if path else ""
        must |= saved_by_torch(part).keys()
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            must.add("_extra_state")
        needed |= {place + key for key in must}
        allowed |= {place + key for key in may}
    given = {key for key in state_dict if key.startswith(prefix)}
    problems = {"Missing": needed - given, "Unexpected": given - needed - allowed}
    found = [
        f"{kind} key(s) in state_dict: {', '.join(sorted(keys))}"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise RuntimeError("; ".join(found))


def saved_by_torch(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module that torch itself saves."""
    kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
    return {n: tensor for n, tensor in {**module._parameters, **kept}.items() if tensor is not None}
