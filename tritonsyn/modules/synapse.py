"""The single-exponential, double-exponential and alpha current synapses."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import Unpack  # which torch needs too; typing has it from Python 3.11 on

from .. import checks, ops, physics
from ..checks import Constant, check_selector
from ..ops.common import as_tensor, per_synapse
from ..values import Dynamics, PackedSpikes, ReadRule, Slot, compute_dtype
from .group import REBUILDS, Group
from .options import SynapseOptions, lists_options_of, partialconstructor_of, setting
from .record import RecordTensor, cursors
from .sequences import is_sequence
from .state import ordinary_tensors, recorded_unless
from .unrolled import ReadAtTimes, unrolled

SynapseConstructor = Callable[..., "ExponentialCurrent"]
Projection = Callable[[ops.Run], tuple[Tensor, ops.End]]
"""What a layer makes of a sequence, and the end of it."""
_SPIKE_MODES = ("previous", "nearest")


class Coefficients(NamedTuple):
    """The constants as steps and reads use them: 0-d or ``[N]``, in the arithmetic's dtype."""

    dynamics: Dynamics
    """How the components move in a step; the gain in nA."""
    rates: tuple[Tensor, ...]
    """Step over time constant of each component."""


def _newest(name: str, doc: str) -> Any:
    """A property: the newest observation of this record, which setting replaces."""
    return property(
        lambda synapse: getattr(synapse, name).peek(),
        lambda synapse, value: getattr(synapse, name).write(value, 1, synapse.inplace),
        doc=doc,
    )


def _is_exchange(present: nn.Parameter | None, value: Any) -> bool:
    """Whether FSDP2 exchanges a parameter for its shard, or the reverse, as in every call.

    A shard is on another mesh, or on one at all, and its values are elsewhere.
    """
    if not isinstance(present, nn.Parameter) or not isinstance(value, nn.Parameter):
        return False
    meshes = [getattr(each, "device_mesh", None) for each in (present, value)]
    return present.shape == value.shape and meshes[0] != meshes[1]


class ExponentialCurrent(Group):
    """The base of all synapses: a group of records that decay, and reads of their past.

    Not for use by itself: a subclass names its constants and its component records and gives the
    amplitude of a spike.
    """

    _constants: ClassVar[tuple[str, ...]]
    """Names of the physical constants, the charge first, in the constructor's order."""
    _components: ClassVar[tuple[tuple[str, str], ...]]
    """Record of each component and the constant that is its time constant."""
    _coupled: ClassVar[bool] = False
    """Whether the first of two components feeds the second, which is the current."""

    def __init__(
        self,
        shape: Sequence[int] | int,
        step_time: float,
        constants: dict[str, Constant],
        *,
        delay: float = 0.0,
        spike_interp_mode: str = "previous",
        interp_tol: float = 0.0,
        current_overbound: float | None = 0.0,
        spike_overbound: bool | None = False,
        batch_size: int = 1,
        inplace: bool = False,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: str | None = None,
    ) -> None:
        how: dict[str, Any] = {
            "batch_first": batch_first, "capturable": capturable, "backend": backend,
        }  # fmt: skip
        super().__init__(shape, step_time, delay, batch_size=batch_size, **how)
        self._spike_mode = checks.one_of("spike_interp_mode", spike_interp_mode, _SPIKE_MODES)
        self._interp_tol = checks.nonnegative("interp_tol", interp_tol)
        finite, flag = checks.optional(checks.finite), checks.optional(checks.flag)
        self._current_overbound = finite("current_overbound", current_overbound)
        self._spike_overbound = flag("spike_overbound", spike_overbound)
        self._inplace = checks.flag("inplace", inplace)
        self._fixed: Coefficients | None = None
        self._filled: dict[str, Tensor] = {}
        dtype, device = checks.record_dtype(dtype), checks.device(device)
        if self._current_overbound is not None:
            checks.within("current_overbound", self._current_overbound, dtype)
        for name, _ in self._components:
            self._add_record(name, batch_size, dtype, device, carried=True)
        self._add_record("spike_", batch_size, torch.bool, device)
        # After the records, in whose dtype they are compared.
        for name, value in constants.items():
            setattr(self, name, value)
        with ordinary_tensors():
            arrivals = torch.zeros((), dtype=torch.int32, device=device)
        self.register_buffer("arrivals", arrivals if capturable else None, persistent=False)

    partialconstructor: ClassVar[Callable[..., SynapseConstructor]]
    """Fixes the physics of a synapse, and leaves its size to a layer.

    Args:
        constants: those of the synapse in the order of its constructor: ``spike_charge``, pC, then
            the time constants, ms. A parameter given here is shared by all that is made.
        spike_interp_mode: ``"previous"`` or ``"nearest"``: what ``spike_at`` reads between steps.
        interp_tol: a time this close to an observation, ms, reads it.
        current_overbound: current, nA, for times outside of ``[0, delay]``; None reads the bound.
        spike_overbound: spike for times outside of ``[0, delay]``; None reads the bound.
        inplace: whether steps record no autograd graph.

    Returns:
        A function ``f(shape, step_time, delay, batch_size)``, which also takes ``device``,
        ``dtype``, ``capturable`` and ``backend`` and makes the synapse.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_constants" in cls.__dict__ and "partialconstructor" not in cls.__dict__:
            made = partialconstructor_of(cls._constants, ExponentialCurrent.__init__)
            made.__qualname__ = f"{cls.__qualname__}.{made.__name__}"
            setattr(cls, made.__name__, classmethod(made))

    # -- constants ----------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        self._drop_plans()
        # A parametrized constant is a property, which torch sets.
        if name in self._constants and _is_exchange(self._parameters.get(name), value):
            self._parameters[name] = value
            return
        if name in self._constants and not is_parametrized(self, name):
            checks.check_graph(name, value)
            value = self._checked_constant(name, value)
            if name in self._parameters or name in self._buffers or name in self.__dict__:
                delattr(self, name)
            self._fixed = None
            self._filled.pop(name, None)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value.detach().clone())
                return
        super().__setattr__(name, value)

    def _checked_constant(self, name: str, value: Any) -> Constant:
        """The constant if it obeys its own rule and those between constants."""
        charge = name == self._constants[0]  # which may be negative
        constant = checks.constant(name, value, self._sizes, above_zero=not charge)
        if isinstance(constant, Tensor):
            checks.check_holds_values(name, constant, self._spikes.device)
        if charge:  # a time constant that does not fit is brought into bounds
            checks.representable(name, constant, self._arithmetic())
        return constant

    def _arithmetic(self) -> torch.dtype:
        """The dtype that constants are computed in."""
        return compute_dtype(self.component_records()[0].storage.dtype)

    def check_constants(self) -> None:
        """Requires the present constants to be in bounds, learned ones included.

        The values are read on the host, which waits for a GPU: call it once per epoch, for example,
        not in every step.

        Raises:
            ValueError: a charge is 0, a time constant is not above 0, ``tc_decay`` is not above
                ``tc_rise``, or a value is not finite; the message names it.
        """
        for name in self._constants:
            self._checked_constant(name, getattr(self, name))

    def coefficients(self) -> Coefficients:
        """Gain, decays and rates of the present constants; differentiable to learned ones."""
        dtype, device = self._arithmetic(), self._spikes.device
        if self._fixed is not None:
            gain = self._fixed.dynamics.gain
            if gain.dtype == dtype and gain.device == device:
                return self._fixed
            self._fixed = None
        constants = [getattr(self, name) for name in self._constants]
        if all(isinstance(value, float) for value in constants):
            return self._coefficients_of_numbers(*constants)
        charge, *taus = map(self._as_constant, self._constants, constants)
        way = (self._dt, dtype, self._coupled, self._backend)
        return Coefficients(*ops.coefficients(charge, taus, *way))

    def _as_constant(self, name: str, value: Constant) -> Tensor:
        """A constant 0-d or ``[N]``, on the device. A number is filled in once."""
        dtype, device = self._arithmetic(), self._spikes.device
        if isinstance(value, Tensor):
            return per_synapse(value.to(device), self._sizes)
        kept = self._filled.get(name)
        if kept is None or kept.dtype != dtype or kept.device != device:
            with ordinary_tensors():
                kept = as_tensor(value, dtype, device)
            if not torch.compiler.is_compiling():
                self._filled[name] = kept
        return kept

    def _coefficients_of_numbers(self, charge: float, *taus: float) -> Coefficients:
        """The coefficients where all constants are numbers: once, until one of them changes."""
        dtype, device = self._arithmetic(), self._spikes.device
        numbers = physics.coefficients(charge, taus, self._dt, dtype)
        with ordinary_tensors():
            gain = as_tensor(numbers[0], dtype, device)
            decays, rates = ([as_tensor(n, dtype, device) for n in each] for each in numbers[1:])
        if self._coupled:
            rates = rates * 2  # not in place, which PyTorch 2.11 does not trace
        dynamics = Dynamics(gain, tuple(decays), rates[0] if self._coupled else None)
        made = Coefficients(dynamics, tuple(rates))
        if not torch.compiler.is_compiling():
            self._fixed = made
        return made

    # -- properties ---------------------------------------------------------------------------

    delay: float = setting("delay", "Longest delay, ms.", checks.nonnegative, REBUILDS)
    inplace: bool = setting("inplace", "Streaming: steps record no autograd graph.", checks.flag)
    interp_tol: float = setting("interp_tol", "A time this close to an observation, ms, reads it.")

    def extra_repr(self) -> str:
        constants = []
        for name in self._constants:
            value = getattr(self, name)
            text = f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
            constants.append(f"{name}={text}")
        return (
            f"{self._sizes}, step_time={self._dt}, {', '.join(constants)}, delay={self._delay}, "
            f"batch_size={self.batchsz}, inplace={self._inplace}"
        )

    # -- records ------------------------------------------------------------------------------

    spike_: RecordTensor

    def component_records(self) -> tuple[RecordTensor, ...]:
        """The record of the current, or those of two components in the order of the dynamics."""
        return tuple([self._modules[name] for name, _ in self._components])  # type: ignore[misc]

    @property
    def _spikes(self) -> Tensor:
        """The storage of the spikes, of the group's batch and device."""
        # Not by nn.Module's __getattr__, because every step asks.
        return self._modules["spike_"].storage  # type: ignore[union-attr, return-value]

    _storage = _spikes

    def _record_names(self) -> list[str]:
        return [*(name for name, _ in self._components), "spike_"]

    def _rebuild(self, **changed: Any) -> None:
        super()._rebuild(**changed)
        self._fixed = None

    def _forget_arrivals(self) -> None:
        arrivals = self._buffers["arrivals"]
        if arrivals is not None:
            arrivals.zero_()

    def load_state(self, state: tuple[Tensor, ...]) -> None:
        with recorded_unless(self._inplace):
            super().load_state(state)

    load_state.__doc__ = Group.load_state.__doc__

    # -- copies and saved states --------------------------------------------------------------

    def _values(self) -> dict[str, Any]:
        return {**super()._values(), "_fixed": None, "_filled": {}}

    def _numbers(self) -> dict[str, float]:
        """The constants that are plain numbers."""
        values = {name: getattr(self, name) for name in self._constants}
        return {name: value for name, value in values.items() if isinstance(value, float)}

    def own_keys(self) -> tuple[set[str], set[str]]:
        return set(), set(self._numbers())

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, number in self._numbers().items():
            saved = torch.tensor(number, dtype=torch.float64, device="cpu")
            destination[prefix + name] = saved

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)
        for name, number in self._numbers().items() if strict else ():
            saved = state_dict.get(prefix + name, number)
            if not checks.is_saved_number(saved, number):
                given = checks.shown(saved.tolist() if checks.is_readable(saved) else saved)
                raise RuntimeError(
                    f"{prefix}{name} of the saved state is {given}, but this module has {number}; "
                    "set it first, or load with strict=False to keep this module's"
                )

    # -- running ------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor | PackedSpikes,
        *,
        backend: str | None = None,
        _run: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Advances by one step, or, with one axis more, by a sequence, as :meth:`scan` does.

        Args:
            x: the input ``[B, *shape]``, or ``[T, B, *shape]``: bool, integer or floating. A value
                multiplies the charge of a spike; the recorded spike is ``x != 0``. In a new or
                cleared module the batch may be of any size.
            backend: overrides the module's for this call.

        Returns:
            The present current ``[B, *shape]`` in nA, in the records' dtype, or that after each
            step, ``[T, B, *shape]``; never aliases state. Differentiable (first order) to the
            input, learned constants and the state before.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        own = _run is None and backend is None
        # Not by _again, because every step comes here.
        if own and not torch.compiler.is_compiling() and (plan := self._plans.get("forward")):
            current = plan(x, not self._inplace)
            if current is not None:
                return current
        if self._unrolling is not None and own:
            return self._unrolling.step(x)
        self.check_at_home()
        if _run is not None:
            return self._over_time(_run, x)
        backend = self._backend if backend is None else backend
        if is_sequence(x, len(self._sizes) + 2):
            return self._over_time(lambda x: self._scan(x, backend), x)
        x, coefficients = self.check_step(x), self.coefficients()
        self.follow(x.shape[0], backend)
        current = self.step(x, coefficients, backend)
        if own and coefficients is self._fixed:
            self._plan("forward", x, lambda: self._planned_step(x, coefficients))
        return current

    def _planned_step(self, x: Tensor, coefficients: Coefficients) -> ops.StepPlan | None:
        """The next step, prepared for an input of this kind; None where that cannot be done."""
        ring, home = self._ring(self._arrivals()), self._home()
        return ops.step_again(x, ring, coefficients.dynamics, home, backend=self._backend)

    def _home(self) -> ops.Home:
        """Where the state is: records, carries, spikes; and what of it is on the device."""
        components = self.component_records()
        carried = [record for record in components if record.carry is not None]
        records = (*components, self.spike_)
        places = [record.place() for record in components]
        places += [*(record.place("carry") for record in carried), self.spike_.place()]
        if self._capturable:
            places += [record.place("position") for record in records]
            places.append((self._buffers, "arrivals"))
        return ops.Home(places, cursors(records))

    def step(self, x: Tensor, coefficients: Coefficients, backend: str | None) -> Tensor:
        """Advances by one step; for layers, which have had the input accepted."""
        arrivals = self._arrivals()
        ring, graph, dynamics = self._ring(arrivals), not self._inplace, coefficients.dynamics
        current, state = ops.step(x, ring, dynamics, graph=graph, backend=backend)
        self._take(state, 1, arrivals)
        return current

    def _arrivals(self) -> Tensor | None:
        """Counts for pointers on the device; where it is None the records advance theirs."""
        return None if torch.compiler.is_compiling() else self._buffers["arrivals"]

    def _ring(self, arrivals: Tensor | None) -> ops.Ring:
        components, spikes = self.component_records(), self.spike_
        carries = [record.carry for record in components if record.carry is not None]
        places = *_places(components), spikes.storage, spikes.cursor
        return ops.Ring(*places, arrivals, carries or None)

    def _take(self, state: Sequence[Tensor], steps: int, arrivals: Tensor | None) -> None:
        """Takes over the records and carries after some steps, and advances what they did not."""
        components = self.component_records()
        _replace(components, state[: len(components)])
        for record, carry in zip(components, state[len(components) :], strict=False):
            if carry is not record.carry:
                record.carry = carry
        if arrivals is None:
            for record in (*components, self.spike_):
                record.advance(steps)

    def scan(
        self, x: Tensor | PackedSpikes, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Advances by T steps at once.

        The records, the pointer and the present values are afterwards as after T calls of
        :meth:`forward`.

        Args:
            x: input ``[T, B, *shape]``, as for :meth:`forward`, or the same as
                :class:`~tritonsyn.functional.PackedSpikes`. T may be 0.
            lengths: steps of each sample, integers ``[B]`` in 0 to T: its state is then that at its
                own end, as if it had run alone, and its currents after that are zero, without
                gradients. Of a tensor on a GPU the values are not checked but bounded.

        Returns:
            The current after each step, ``[T, B, *shape]`` in nA, in the records' dtype.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        if lengths is not None:
            return self(x, _run=lambda x: self._scan_until(x, lengths))
        return self(x, _run=lambda x: self._scan(x, self._backend))

    def _scan(self, x: Tensor | PackedSpikes, backend: str | None) -> Tensor:
        own = backend is self._backend
        if own and (currents := self._again("scan", x, not self._inplace)) is not None:
            return currents
        currents = self._advanced(x, backend, wanted=True).view(x.shape)
        if own and isinstance(x, Tensor) and len(x) and not currents.requires_grad:
            self._plan("scan", x, lambda: self._planned_scan(x))
        return currents

    def _scan_until(self, x: Tensor | PackedSpikes, lengths: Any) -> Tensor:
        """A scan in which each sample ends after steps of its own."""
        self.check_sequence(x)
        lengths = checks.check_lengths(lengths, x.shape[0], x.shape[1], self._spikes.device)
        if not x.shape[0]:
            return self._scan(x, self._backend)
        with recorded_unless(self._inplace):
            coefficients, arrivals = self.coefficients(), self._arrivals()
            self.follow(x.shape[1], self._backend)
            run = self._run(x, coefficients).until(lengths)
            # So that currents are rounded once.
            states, end = run._replace(dtype=self._arithmetic()).scanned()
            self._take(end, x.shape[0], arrivals)
            currents = coefficients.dynamics.current(states).to(run.dtype)
            return ops.silenced(currents, lengths).view(x.shape)

    def _planned_scan(self, x: Tensor) -> ops.ScanPlan | None:
        """The next scan, prepared for an input of this kind; None where that cannot be done."""
        coefficients = self._fixed
        if coefficients is None:
            return None
        ring, home = self._ring(self._arrivals()), self._home()
        how: dict[str, Any] = {"dtype": ring.components[0].dtype, "backend": self._backend}
        return ops.scan_ring_again(x, ring, coefficients.dynamics, home, **how)

    def advance(
        self, x: Tensor | PackedSpikes, lengths: Tensor | Sequence[int] | None = None
    ) -> None:
        """Advances as :meth:`scan` does, for the state alone: no currents are returned.

        Args:
            x: input ``[T, B, *shape]``, as for :meth:`scan`.
            lengths: steps of each sample, integers ``[B]``, as for :meth:`scan`; None for T.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        if lengths is not None:
            self.scan(x, lengths)
            return
        self(x, _run=lambda x: self._advanced(x, self._backend, wanted=False))

    def _advanced(self, x: Tensor | PackedSpikes, backend: str | None, wanted: bool) -> Any:
        """Advances by a sequence and returns the currents; None where they are not wanted."""
        self.check_sequence(x)
        with recorded_unless(self._inplace):
            dynamics = self.coefficients().dynamics
            self.follow(x.shape[1], backend)
            dtype, rows = self.component_records()[0].storage.dtype, _rows(x)
            how: dict[str, Any] = {"dtype": dtype if wanted else None, "backend": backend}
            if not x.shape[0]:
                return ops.scan(rows, dynamics, self._starts(), last=0, **how)[0]
            arrivals = self._arrivals()
            how["at_rest"] = torch.is_grad_enabled() and self._at_rest()
            y, state = ops.scan_ring(rows, self._ring(arrivals), dynamics, **how)
            self._take(state, x.shape[0], arrivals)
        return y

    def scan_at(
        self,
        x: Tensor | PackedSpikes,
        selector: Tensor | float,
        per_step: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A scan, and what :meth:`current_at` would have read after each of its steps.

        Args:
            x: input ``[T, B, *shape]``, as for :meth:`scan`.
            selector: times in ms, the same at each step, as for :meth:`current_at`.
            per_step: the times of step t are ``selector[t]``, of all those shapes; so the selector
                is a tensor ``[T, ...]``, with ``batch_first`` too.
            lengths: steps of each sample, as for :meth:`scan`; what is read after the end is zero,
                too.

        Returns:
            ``(currents, delayed)``: ``[T, B, *shape]``, and ``[T, B, *shape]`` or
            ``[T, B, *shape, D]``, both in nA, in the records' dtype.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        per_step = checks.flag("per_step", per_step)
        return self(x, _run=lambda x: self._scan_at(x, selector, per_step, lengths))

    def _scan_at(
        self, x: Tensor | PackedSpikes, selector: Tensor | float, per_step: bool, lengths: Any
    ) -> tuple[Tensor, Tensor]:
        self.check_sequence(x)
        steps, *size = x.shape
        kind = self._spikes.device, self._arithmetic(), steps if per_step else None
        sel = check_selector("selector", selector, size, *kind)
        if lengths is not None:
            lengths = checks.check_lengths(lengths, steps, size[0], self._spikes.device)
        coefficients, rule = self.coefficients(), self.delay_rule(self._current_overbound)
        self.follow(size[0], self._backend)
        if steps == 0:
            empty = self.component_records()[0].storage.new_empty(0, *self.batchedshape)
            return empty, empty.view(*empty.shape, *sel.shape[empty.ndim - 1 + per_step :])
        with recorded_unless(self._inplace):
            run = self._run(x, coefficients).until(lengths)
            pasts = run.before()
            flat, state = run.scanned()
            self._take(state, steps, self._arrivals())
        states = [rows.view(-1, *self.batchedshape) for rows in flat]
        how: dict[str, Any] = {"per_step": per_step, "backend": self._backend}
        how |= {"pasts": pasts, "slots": run.slots}
        delayed = ops.select_scan(states, sel, coefficients.rates, rule, steps, **how)
        current = coefficients.dynamics.current(states)
        if lengths is None:
            return current, delayed
        return ops.silenced(current, lengths), ops.silenced(delayed, lengths)

    def unrolled(
        self, steps: int, selector: Tensor | float
    ) -> AbstractContextManager["ExponentialCurrent"]:
        """Within the block a call is a step that also reads the past, at times given once.

        ``synapse(x)`` returns what ``scan_at`` gives of a step, ``(current, delayed)``: the present
        current, and what :meth:`current_at` would read at the times. Use it for loops in which the
        next input depends on what was read: the times are located once, and times and constants
        get their gradient once, at the end. They count as they are in the first step. Until the
        block ends only such steps are allowed, as in :meth:`tritonsyn.DelayedLinear.unrolled`.

        Args:
            steps: how many there will be, at most.
            selector: times in ms, as for :meth:`current_at`.

        Returns:
            A context manager, which gives the synapse itself.

        Raises:
            TypeError, ValueError: ``steps`` is not a positive integer; in the block: times or an
                input do not fit, or it is one too many. The state is as before.
            RuntimeError: the block is inside of another one, or of a compiled function; in the
                block: anything else is done with the state.

        Example:
            >>> physics = {"spike_charge": 1.0, "time_constant": 5.0}
            >>> synapse = SingleExponentialCurrent(3, 1.0, **physics, delay=4.0)
            >>> z = torch.zeros(1, 3)
            >>> with synapse.unrolled(20, torch.tensor([[0.5, 2.0, 4.0]])):
            ...     for x in torch.rand(20, 1, 3):
            ...         current, delayed = synapse(z)
            ...         z = torch.sigmoid(x + delayed)
        """
        reads = ReadAtTimes(self, selector, self.delay_rule(self._current_overbound))
        return unrolled(self, self, steps, reads.begin, reads.finish)

    # -- what a delayed layer needs -----------------------------------------------------------

    def again(self, parameters: dict[str, Any], rows: Any) -> Tensor | None:
        """What a plan of the layer with these parameters returns; None where there is none."""
        return self._again(self._plan_name(parameters, rows), rows)

    def _plan_name(self, parameters: dict[str, Any], rows: Any) -> Any:
        # What is launched depends on the past, too.
        return id(parameters), getattr(rows, "ndim", 0), self._at_rest()

    def planned(self, parameters: dict[str, Any], rows: Any, call: Callable[[], Tensor]) -> Tensor:
        """What a call of such a layer returns; the next may be planned."""
        used = [parameters.get(name) for name in ("weight", "delay")]
        if torch.is_grad_enabled() and any(p is None or p.requires_grad for p in used):
            return call()

        def state() -> ops.State | None:
            if self._fixed is None or rows.shape[-2] != self.batchsz:
                return None
            if any(type(parameter) is not nn.Parameter for parameter in used):
                return None
            places, moving = self._home()
            records, steps = len(self._components), 1 if rows.ndim == 2 else len(rows)
            home = ops.Home([*places, (parameters, "weight"), (parameters, "delay")], moving)
            return ops.State(home, len(places), records, steps, self._backend)

        return self._replayed(self._plan_name(parameters, rows), rows, call, state)

    def project(self, taps: ops.Taps) -> Tensor:
        """What connections from these synapses deliver now, each after its delay: ``[B, O]``."""
        return ops.project_step(*_places(self.component_records()), taps, backend=self._backend)

    def delayed(self, selector: Tensor) -> Tensor:
        """:meth:`current_at`, with times beyond the longest delay as at it."""
        if (currents := self._again("delayed", selector)) is not None:
            return currents
        rule, rates = self.delay_rule(), self.coefficients().rates
        return self._read("delayed", self.component_records(), rates, selector, rule)

    def scan_projected(
        self,
        x: Tensor | PackedSpikes,
        coefficients: Coefficients,
        project: Projection,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """A scan of a sequence, T >= 1, and what a layer makes of it.

        For layers, which have checked the sequence.
        """
        run = self._run(x, coefficients).until(lengths)
        y, state = project(run.detached() if self._inplace else run)
        self._take(state, x.shape[0], self._arrivals())
        return y

    def unroll(
        self,
        x: Tensor,
        coefficients: Coefficients,
        taps: ops.Taps,
        steps: int,
        *,
        least: int = 0,
        reads: int | None = None,
        spread: ops.Spread | None = None,
    ) -> ops.Tape:
        """A tape that goes on from the state, for so many steps from ``x [m, B, *shape]`` on.

        Until :meth:`roll_up` the state is on the tape and nowhere else. The rest is as for
        :class:`tritonsyn.ops.Tape`.
        """
        self.check_at_home()
        run = self._run(x, coefficients)
        how: dict[str, Any] = {"least": least, "reads": reads, "graph": not self._inplace}
        tape = ops.Tape(run, taps, steps, spread=spread, **how)
        self._lend(True)
        return tape

    def roll_up(self, tape: ops.Tape) -> None:
        """Takes the state over from a tape, as plain steps would have left it."""
        self._lend(False)
        if tape.done:
            with torch.set_grad_enabled(tape.links):
                arrivals, (spikes, tails) = self._arrivals(), tape.end()
                ring = self._ring(arrivals)
                self._take(ops.extend_ring(ring, spikes, tape.done, tails), tape.done, arrivals)

    def _lend(self, lent: bool) -> None:
        for module in (self, *self._records()):
            module._drop_plans()
            module.__dict__["_lent"] = lent  # not by nn.Module, which is slow

    def _run(self, x: Tensor | PackedSpikes, coefficients: Coefficients) -> ops.Run:
        """The sequence and the present state."""
        records = self.component_records()
        slots, past = records[0].recordsz, None
        if not self._at_rest():
            histories = [record.history(slots).flatten(2) for record in records]
            past = ops.Past(histories, self._starts())
        dtype, ring = records[0].storage.dtype, self._ring(self._arrivals())
        return ops.Run(_rows(x), coefficients.dynamics, past, slots, dtype, self._backend, ring)

    def _at_rest(self) -> bool:
        """Whether it is certain that the state is zero and has no graph."""
        records = self.component_records()
        return all(record.at_rest and not record.storage.requires_grad for record in records)

    def _starts(self) -> list[Tensor]:
        """The newest value of each state ``[B, N]``, in the dtype of the arithmetic."""
        records = self.component_records()
        dtype = compute_dtype(records[0].storage.dtype)
        return [record.newest().flatten(1).to(dtype) for record in records]

    spike: Tensor = _newest(
        "spike_", "Present spikes ``[B, *shape]``, bool. Setting replaces the newest observation."
    )

    def spike_at(self, selector: Tensor | float) -> Tensor:
        """Spikes at times before the present.

        Args:
            selector: times in ms, ``[1 or B, *shape]`` or ``[1 or B, *shape, D]``, floating or
                integer, where any axis of the group may be 1; or one time for all, a number or 0-d.

        Returns:
            Bool ``[B, *shape]`` or ``[B, *shape, D]``: the spike before the time
            (``previous``) or the closer one (``nearest``), ``spike_overbound`` outside of
            ``[0, delay]``, False for a NaN in a tensor.

        Raises:
            TypeError, ValueError: the times are of the wrong dtype, shape or device, or a number
                that is not finite.
        """
        if (spikes := self._again("spike_at", selector)) is not None:
            return spikes
        rule = self._rule(self._spike_mode, self._spike_overbound)
        return self._read("spike_at", (self.spike_,), (None,), selector, rule)

    def current_at(self, selector: Tensor | float) -> Tensor:
        r"""Currents at times before the present, between steps as the synapse has them.

        A time :math:`a` after the earlier step each exponential component has decayed with its own
        time constant, and an alpha function is :math:`(I + (a / \tau) A) \exp(-a / \tau)`.

        Args:
            selector: times in ms, ``[1 or B, *shape]`` or ``[1 or B, *shape, D]``, floating or
                integer, where any axis of the group may be 1; or one time for all, a number or 0-d.

        Returns:
            Currents in nA, ``[B, *shape]`` or ``[B, *shape, D]``, in the records' dtype; outside of
            ``[0, delay]`` ``current_overbound``, NaN for a NaN in a tensor. Differentiable to the
            recorded currents, to learned time constants and to the selector: the derivative to a
            delay is :math:`I / \tau` of each exponential component, and
            :math:`I(t) / \tau - (A / \tau) \exp(-a / \tau)` of an alpha function.

        Raises:
            TypeError, ValueError: the times are of the wrong dtype, shape or device, or a number
                that is not finite.
        """
        if (currents := self._again("current_at", selector)) is not None:
            return currents
        rule, rates = self.delay_rule(self._current_overbound), self.coefficients().rates
        return self._read("current_at", self.component_records(), rates, selector, rule)

    def delay_rule(self, overbound: float | None = None) -> ReadRule:
        """How currents are read between steps; beyond the longest delay as at it."""
        return self._rule("alpha" if self._coupled else "expdecay", overbound)

    def _rule(self, mode: str, overbound: float | None) -> ReadRule:
        return ReadRule(mode, self._dt, self._delay, self._interp_tol, overbound)

    def _read(
        self,
        name: str,
        records: Sequence[RecordTensor],
        rates: Sequence[Tensor | None],
        selector: Tensor | float,
        rule: ReadRule,
    ) -> Tensor:
        self._check_read()
        storages, pointers = _places(records)
        size, device = self.batchedshape, storages[0].device
        sel = check_selector("selector", selector, size, device, self._arithmetic())
        value, storages = ops.select(storages, sel, rates, pointers, rule, backend=self._backend)
        _replace(records, storages)
        fixed = self._fixed is not None or not any(rate is not None for rate in rates)
        if fixed and sel is selector and not value.requires_grad:
            self._plan(name, sel, lambda: self._planned_read(records, sel, rates, rule))
        return value

    def _planned_read(
        self,
        records: Sequence[RecordTensor],
        sel: Tensor,
        rates: Sequence[Tensor | None],
        rule: ReadRule,
    ) -> ops.SelectPlan | None:
        """The next read, prepared for times of this kind; None where that cannot be done."""
        positions = [record.place("position") for record in records if self._capturable]
        home = ops.Home([*(record.place() for record in records), *positions], cursors(records))
        storages, pointers = _places(records)
        operands = (storages, sel, rates, pointers, rule, home)
        return ops.select_again(*operands, backend=self._backend)


def _places(records: Sequence[RecordTensor]) -> tuple[tuple[Tensor, ...], tuple[Slot, ...]]:
    """Storages and pointers."""
    return tuple([r.storage for r in records]), tuple([r.cursor for r in records])


def _replace(records: Sequence[RecordTensor], storages: Sequence[Tensor]) -> None:
    """Gives each record the storage that an operation returned."""
    for record, storage in zip(records, storages, strict=True):
        record.replace_storage(storage)


def _rows(x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
    """The input with one axis of synapses."""
    return x if isinstance(x, PackedSpikes) else x.flatten(2)


class _OneTimeConstant(ExponentialCurrent):
    """Synapses with one time constant, and a gain of the charge over it."""

    _constants = ("spike_charge", "time_constant")
    current_: RecordTensor
    spike_charge: Constant
    time_constant: Constant

    @lists_options_of(ExponentialCurrent)
    def __init__(
        self,
        shape: Sequence[int] | int,
        step_time: float,
        *,
        spike_charge: Constant,
        time_constant: Constant,
        **options: Unpack[SynapseOptions],
    ) -> None:
        constants = {"spike_charge": spike_charge, "time_constant": time_constant}
        super().__init__(shape, step_time, constants, **options)

    current: Tensor = _newest(
        "current_",
        "Present current ``[B, *shape]``, nA. Setting replaces its newest observation, no other.",
    )


class SingleExponentialCurrent(_OneTimeConstant):
    r"""Synapses whose current rises at once and decays exponentially.

    .. math:: I[t] = I[t-1] \exp(-\Delta t / \tau) + \frac{Q}{\tau} x[t]

    A unit spike delivers the charge :math:`Q`: in its own step the current is :math:`Q / \tau`.

    The model: Gerstner, Kistler, Naud and Paninski, Neuronal Dynamics (2014), section 3.1,
    doi:10.1017/CBO9781107447615.

    Args:
        shape: shape of the group, an integer or a sequence of them.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        spike_charge: charge of a spike :math:`Q`, pC, not 0.
        time_constant: :math:`\tau`, ms, > 0. Charge and time constant take a number, a tensor
            broadcastable to ``shape`` (one value per synapse) or an ``nn.Parameter`` of either
            size, which is then learned; steps and reads use the present value. A time constant
            below :math:`2^{-32}` steps (float64: :math:`2^{-256}`) counts as that.
        delay: longest delay that reads support, ms, >= 0. The records keep
            ``K = ceil(delay / step_time) + 1`` observations.
        spike_interp_mode: ``"previous"`` or ``"nearest"``: what ``spike_at`` reads between steps.
        interp_tol: a time this close to an observation, ms, reads it; at least four units in the
            last place of the time.
        current_overbound: current, nA, for times outside of ``[0, delay]``; None reads the bound.
        spike_overbound: spike for times outside of ``[0, delay]``; None reads the bound.
        batch_size: size of the batch B; a new or cleared module takes that of its input.
        inplace: streaming: steps record no autograd graph. False: differentiable whenever grad
            mode is on and anything involved requires grad.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, *shape]``.
        device: of the records; None for torch's default.
        dtype: of the records of currents: float64, float32, bfloat16 or float16; None for torch's
            default. Arithmetic is float64 for float64 and float32 otherwise.
        capturable: keep the pointer on the device, so that steps can be captured in a CUDA graph;
            needed under ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        spike_charge: the charge, pC; can be set.
        time_constant: the time constant, ms; can be set.
        current_: record of the currents, nA, ``[K, B, *shape]``.
        spike_: record of the spikes, bool ``[K, B, *shape]``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or breaks its rule; the message
            names it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import SingleExponentialCurrent
        >>> physics = {"spike_charge": 10.0, "time_constant": 5.0}
        >>> synapse = SingleExponentialCurrent(2, 1.0, **physics, delay=3.0)
        >>> synapse(torch.tensor([[1.0, 0.0]]))
        tensor([[2., 0.]])
        >>> _ = synapse(torch.zeros(1, 2))
        >>> synapse.current_at(torch.tensor([[1.0, 0.5]]))
        tensor([[2., 0.]])
    """

    _components = (("current_", "time_constant"),)


class DoubleExponentialCurrent(ExponentialCurrent):
    r"""Synapses whose current rises and decays exponentially.

    .. math::
        P[t] &= P[t-1] \exp(-\Delta t / \tau_d) + g\,x[t] \\
        M[t] &= M[t-1] \exp(-\Delta t / \tau_r) + g\,x[t] \\
        I[t] &= P[t] - M[t], \qquad g = \frac{Q}{\tau_d - \tau_r}

    A unit spike delivers the charge :math:`Q`; the current peaks
    :math:`\frac{\tau_d \tau_r}{\tau_d - \tau_r} \ln\frac{\tau_d}{\tau_r}` after it.

    Learned time constants may meet and cross: the larger one counts as :math:`\tau_d`, and closer
    than 3 % (float64: 4e-5) they are moved apart, smoothly and just enough that values and
    gradients stay finite and continuous. :meth:`check_constants` names them.

    The model: Roth and van Rossum, Modeling Synapses, in De Schutter (ed.), Computational Modeling
    Methods for Neuroscientists (2009), doi:10.7551/mitpress/9780262013277.003.0007.

    Args:
        shape: shape of the group, an integer or a sequence of them.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        spike_charge: charge of a spike :math:`Q`, pC, not 0. The constants take a number, a tensor
            or an ``nn.Parameter``, as for :class:`SingleExponentialCurrent`.
        tc_decay: time constant of the decay :math:`\tau_d`, ms, > ``tc_rise`` in the arithmetic's
            dtype. Where both are meant to be equal, use :class:`AlphaCurrent`.
        tc_rise: time constant of the rise :math:`\tau_r`, ms, > 0.
        delay: longest delay that reads support, ms, >= 0.
        spike_interp_mode: ``"previous"`` or ``"nearest"``: what ``spike_at`` reads between steps.
        interp_tol: a time this close to an observation, ms, reads it; at least four units in the
            last place of the time.
        current_overbound: current or component, nA, for times outside of ``[0, delay]``; None reads
            the bound.
        spike_overbound: spike for times outside of ``[0, delay]``; None reads the bound.
        batch_size: size of the batch B; a new or cleared module takes that of its input.
        inplace: streaming: steps record no autograd graph.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, *shape]``.
        device: of the records; None for torch's default.
        dtype: of the records of currents, as for :class:`SingleExponentialCurrent`.
        capturable: keep the pointer on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        spike_charge: the charge, pC; can be set.
        tc_decay: the time constant of the decay, ms; can be set.
        tc_rise: the time constant of the rise, ms; can be set.
        pos_current_: record of the first component :math:`P`, nA, ``[K, B, *shape]``.
        neg_current_: record of the second component :math:`M`, nA, ``[K, B, *shape]``.
        spike_: record of the spikes, bool ``[K, B, *shape]``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or breaks its rule; the message
            names it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import DoubleExponentialCurrent
        >>> synapse = DoubleExponentialCurrent(1, 1.0, spike_charge=10.0, tc_decay=6.0, tc_rise=2.0)
        >>> synapse.scan(torch.tensor([[[1.0]], [[0.0]], [[0.0]]])).flatten()
        tensor([0.0000, 0.5999, 0.8716])
    """

    _constants = ("spike_charge", "tc_decay", "tc_rise")
    _components = (("pos_current_", "tc_decay"), ("neg_current_", "tc_rise"))
    pos_current_: RecordTensor
    neg_current_: RecordTensor
    spike_charge: Constant
    tc_decay: Constant
    tc_rise: Constant

    @lists_options_of(ExponentialCurrent)
    def __init__(
        self,
        shape: Sequence[int] | int,
        step_time: float,
        *,
        spike_charge: Constant,
        tc_decay: Constant,
        tc_rise: Constant,
        **options: Unpack[SynapseOptions],
    ) -> None:
        constants = {"spike_charge": spike_charge, "tc_decay": tc_decay, "tc_rise": tc_rise}
        super().__init__(shape, step_time, constants, **options)

    def _checked_constant(self, name: str, value: Any) -> Constant:
        constant = super()._checked_constant(name, value)
        names = ("tc_decay", "tc_rise")
        decay, rise = (constant if n == name else getattr(self, n, None) for n in names)
        if name in names and decay is not None and rise is not None:
            dtype = self._arithmetic()
            with torch.no_grad():
                greater = checks.rounded(decay, dtype) > checks.rounded(rise, dtype)
            if isinstance(greater, Tensor):
                greater = greater.is_meta or bool(greater.all())
            if not greater:
                raise ValueError(
                    f"tc_decay must be greater than tc_rise in {dtype}, but they are {decay} and "
                    f"{rise}; AlphaCurrent is the synapse where they are equal"
                )
        return constant

    @property
    def current(self) -> Tensor:
        """Present current ``[B, *shape]``, nA: positive minus negative; set these instead."""
        pos, neg = (record.newest() for record in self.component_records())
        return (pos - neg).to(self.pos_current_.storage.dtype)

    @current.setter
    def current(self, value: Tensor) -> None:
        raise AttributeError("current is pos_current minus neg_current: set these instead")

    pos_current: Tensor = _newest(
        "pos_current_", "Present positive component, nA. Setting replaces the newest observation."
    )
    neg_current: Tensor = _newest(
        "neg_current_", "Present negative component, nA. Setting replaces the newest observation."
    )

    def pos_current_at(self, selector: Tensor | float) -> Tensor:
        """The positive component :math:`P` at times before the present.

        Args:
            selector: times in ms, as for :meth:`current_at`.

        Returns:
            nA, ``[B, *shape]`` or ``[B, *shape, D]``; outside of ``[0, delay]``
            ``current_overbound``. Differentiable as :meth:`current_at` is.

        Raises:
            TypeError, ValueError: the times are of the wrong dtype, shape or device, or a number
                that is not finite.
        """
        return self._component_at(selector, 0)

    def neg_current_at(self, selector: Tensor | float) -> Tensor:
        """The negative component :math:`M` at times before the present.

        Args:
            selector: times in ms, as for :meth:`current_at`.

        Returns:
            nA, ``[B, *shape]`` or ``[B, *shape, D]``; outside of ``[0, delay]``
            ``current_overbound``. Differentiable as :meth:`current_at` is.

        Raises:
            TypeError, ValueError: the times are of the wrong dtype, shape or device, or a number
                that is not finite.
        """
        return self._component_at(selector, 1)

    def _component_at(self, selector: Tensor | float, component: int) -> Tensor:
        name = f"component {component}"
        if (currents := self._again(name, selector)) is not None:
            return currents
        record, rate = self.component_records()[component], self.coefficients().rates[component]
        rule = self.delay_rule(self._current_overbound)
        return self._read(name, (record,), (rate,), selector, rule)


class AlphaCurrent(_OneTimeConstant):
    r"""Synapses whose current follows the alpha function, the limit of equal time constants.

    .. math::
        A[t] &= A[t-1] \exp(-\Delta t / \tau) + \frac{Q}{\tau} x[t] \\
        I[t] &= \left(I[t-1] + \frac{\Delta t}{\tau} A[t-1]\right) \exp(-\Delta t / \tau)

    A unit spike delivers the charge :math:`Q`: a time :math:`s` after it the current is
    :math:`Q\,s / \tau^2\,\exp(-s / \tau)`, which peaks at :math:`s = \tau`. Between steps it is
    :math:`(I + (a / \tau) A) \exp(-a / \tau)`, a time :math:`a` after the earlier one.

    The model: Rall, Distinguishing theoretical synaptic potentials computed for different soma-
    dendritic distributions of synaptic input (1967), doi:10.1152/jn.1967.30.5.1138.

    Args:
        shape: shape of the group, an integer or a sequence of them.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        spike_charge: charge of a spike :math:`Q`, pC, not 0. The constants take a number, a tensor
            or an ``nn.Parameter``, as for :class:`SingleExponentialCurrent`.
        time_constant: :math:`\tau`, ms, > 0.
        delay: longest delay that reads support, ms, >= 0.
        spike_interp_mode: ``"previous"`` or ``"nearest"``: what ``spike_at`` reads between steps.
        interp_tol: a time this close to an observation, ms, reads it; at least four units in the
            last place of the time.
        current_overbound: current, nA, for times outside of ``[0, delay]``; None reads the bound.
        spike_overbound: spike for times outside of ``[0, delay]``; None reads the bound.
        batch_size: size of the batch B; a new or cleared module takes that of its input.
        inplace: streaming: steps record no autograd graph.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, *shape]``.
        device: of the records; None for torch's default.
        dtype: of the records of currents, as for :class:`SingleExponentialCurrent`.
        capturable: keep the pointer on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        spike_charge: the charge, pC; can be set.
        time_constant: the time constant, ms; can be set.
        rise_: record of the first state :math:`A`, nA, ``[K, B, *shape]``.
        current_: record of the currents :math:`I`, nA, ``[K, B, *shape]``.
        spike_: record of the spikes, bool ``[K, B, *shape]``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or breaks its rule; the message
            names it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import AlphaCurrent
        >>> synapse = AlphaCurrent(1, 1.0, spike_charge=10.0, time_constant=2.0)
        >>> synapse.scan(torch.tensor([[[1.0]], [[0.0]], [[0.0]]])).flatten()
        tensor([0.0000, 1.5163, 1.8394])
    """

    _components = (("rise_", "time_constant"), ("current_", "time_constant"))
    _coupled = True
    rise_: RecordTensor
