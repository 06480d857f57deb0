"""The base of layers with delays: parameters, delays, steps, sequences."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import checks, ops
from ..values import STRATEGIES, Links, PackedSpikes, whole_steps
from .delays import LearnedDelays, initialized, uniform
from .options import Initializer, setting
from .sequences import TakesSequences, is_sequence
from .state import Stateful
from .synapse import Coefficients, ExponentialCurrent, Projection, SynapseConstructor
from .unrolled import unrolled


def _of_the_synapse(name: str, doc: str) -> Any:
    """A property that gets and sets the synapse's."""
    return property(
        lambda layer: getattr(layer.synapse, name),
        lambda layer, value: setattr(layer.synapse, name, value),
        doc=doc,
    )


def _known_strategy(name: str, value: object) -> str:
    return checks.one_of(name, value, STRATEGIES)


class DelayedProjection(LearnedDelays, TakesSequences):
    """Synapses, and connections from them with weights and delays.

    Not for use by itself: a subclass gives the size of the weights, and where its inputs are not
    the rows ``[B, I]`` of the synapses it turns them into these by :meth:`_lowered`, and the rows
    ``[B, O]`` that the projection gives into outputs by :meth:`_raised`.

    The other arguments are those of :class:`tritonsyn.DelayedLinear`.

    Args:
        size: of the weights, outputs first; the other axes are an output's inputs.
        inputs: number of synapses.
    """

    kinds_of_delays: ClassVar[tuple[str, ...]] = ("connection", "input", "output")
    """What may have a delay of its own."""
    step_axes: ClassVar[int] = 2
    """Axes of the input of a step; a sequence has one more."""
    _spread: float
    synapse: ExponentialCurrent
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        size: Sequence[int],
        inputs: int,
        step_time: float,
        *,
        synapse: SynapseConstructor,
        delay: float,
        delays: str = "connection",
        min_delay: float = 0.0,
        bias: bool = False,
        batch_size: int = 1,
        batch_first: bool = False,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        delay_init: Initializer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        strategy: str = "auto",
        spread: float = 0.0,
        capturable: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self._strategy = _known_strategy("strategy", strategy)
        self._batch_first = checks.flag("batch_first", batch_first)
        self.spread = spread
        self._delays = checks.one_of("delays", delays, self.kinds_of_delays)
        if not callable(synapse) or isinstance(synapse, nn.Module | type):
            raise TypeError(
                "synapse must be what a synapse's partialconstructor returns, "
                f"but is {checks.shown(synapse)}"
            )
        dtype, bias = checks.record_dtype(dtype), checks.flag("bias", bias)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        how = {**factory, "capturable": capturable, "backend": backend}
        self.synapse = synapse((inputs,), step_time, delay, batch_size, **how)
        if not isinstance(self.synapse, ExponentialCurrent):
            raise TypeError(
                f"synapse must make a synapse of tritonsyn, but makes {checks.shown(self.synapse)}"
            )
        self._min_delay = self._checked_min_delay(min_delay)
        bound = 1 / math.sqrt(math.prod(size[1:]))
        around_zero = uniform(-bound, bound)
        between_bounds = uniform(self._min_delay, self.max_delay)
        delay_size = {"connection": size, "input": (inputs,), "output": size[:1]}[self._delays]
        self._shapes = {"weight": tuple(size), "delay": tuple(delay_size), "bias": tuple(size[:1])}
        inits = {
            "weight": around_zero if weight_init is None else weight_init,
            "delay": between_bounds if delay_init is None else delay_init,
            "bias": around_zero if bias_init is None else bias_init,
        }
        for name, init in inits.items():
            made = None
            if name != "bias" or bias:
                values = torch.empty(self._shapes[name], **factory)
                made = initialized(f"{name}_init", values, init)
            self.register_parameter(name, made)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        synapse = self.__dict__.get("_modules", {}).get("synapse")
        if isinstance(synapse, Stateful):
            synapse._drop_plans()

    def _lowered(self, x: Any) -> Any:
        """The input, of a step or of a sequence, as rows for the synapses."""
        return x

    def _raised(self, y: Tensor) -> Tensor:
        """The projection of these rows, as the layer returns it."""
        return y

    # -- properties ---------------------------------------------------------------------------

    @property
    def max_delay(self) -> float:
        """Longest delay, ms. Setting it rebuilds the records and clears; delays stay."""
        return self.synapse.delay

    @max_delay.setter
    def max_delay(self, value: float) -> None:
        self.synapse.delay = self._checked_max_delay(value)

    @property
    def least_steps(self) -> int:
        """Whole steps that every connection waits at least, with delays as their dtype has them."""
        least, dtype = whole_steps(self.dt, self._min_delay), self.delay.dtype
        if dtype.itemsize > 2:  # rounded by less than reads tolerate
            return least
        shortest = torch.tensor(self._min_delay, dtype=dtype, device="cpu").item()
        return min(least, round(shortest / self.dt))

    dt: float = _of_the_synapse(
        "dt", "Length of a step, ms. Setting it rebuilds the records and clears."
    )
    batchsz: int = _of_the_synapse(
        "batchsz",
        "Batch size. Setting it rebuilds the records and clears. A new layer takes its input's.",
    )
    backend: str | None = _of_the_synapse(
        "backend", '``"auto"``, ``"triton"``, ``"reference"``; None for the package\'s default.'
    )
    delays: str = setting(
        "delays", 'What has a delay: ``"connection"``, ``"input"`` or ``"output"``.'
    )
    strategy: str = setting(
        "strategy", "How a sequence is computed; see the class.", _known_strategy
    )
    spread: float = setting(
        "spread",
        "How far delays see when they learn, ms; 0 for the exact derivative. Can be set any time.",
        checks.nonnegative,
    )

    # -- delays -------------------------------------------------------------------------------

    @property
    def delay_steps(self) -> Tensor:
        """Whole steps of each delay, int32: ``ceil(delay / dt)``."""
        self._check_parameters()
        synapse = self.synapse
        rule, slots = synapse.delay_rule()._replace(mode="expdecay"), synapse.spike_.recordsz
        with torch.no_grad():
            rows = self.delay.reshape(len(self.delay), -1)
            unit = torch.ones((), dtype=torch.float32, device=rows.device)
            how = ([unit], rule, slots, self._min_delay)
            taps = ops.taps(torch.ones_like(rows), rows, *how, backend=self.backend)
        return taps.back.view(self.delay.shape)

    def taps(self, coefficients: Coefficients) -> ops.Taps:
        """The present connections as taps, with these coefficients of the synapse."""
        links = self._links()
        weight = self._weights() if links is None else self.weight.flatten(1)
        return self._taps(weight, coefficients, links)

    def _taps(
        self, weight: Tensor, coefficients: Coefficients, links: Links | None = None
    ) -> ops.Taps:
        synapse = self.synapse
        rule, slots = synapse.delay_rule(), synapse.spike_.recordsz
        delay = self._delays_of_taps(self._read_delay())
        how = (coefficients.rates, rule, slots, self._min_delay)
        return ops.taps(weight, delay, *how, links=links, backend=self.backend)

    def _links(self) -> Links | None:
        """Which inputs each output reads, if only these are to be computed; None: all."""
        return None

    def _weights(self) -> Tensor:
        """The weights ``[O, I]`` of all connections."""
        return self.weight.flatten(1)

    def _delays_of_taps(self, delay: Tensor) -> Tensor:
        """The delays as ``[O, I]``, or with one row or column where connections share them."""
        if self._delays == "input":
            return delay.unsqueeze(0)
        return delay.flatten(1) if self._delays == "connection" else delay.unsqueeze(1)

    def _read_delay(self) -> Tensor:
        """The delays as reads take them; without a graph where the spread makes their gradient."""
        return self.delay.detach() if self._spreads() else self.delay

    def _spreads(self) -> bool:
        """Whether the spread makes the gradient of the delays."""
        return self._spread > 0 and torch.is_grad_enabled() and self.delay.requires_grad

    def _spread_delays(self, coefficients: Coefficients) -> ops.Spread | None:
        """The delays and their connections, where the spread makes their gradient."""
        if not self._spreads():
            return None
        synapse, weight = self.synapse, self._weights().detach()
        with torch.no_grad():
            back = self._taps(weight, coefficients).back
        how = (synapse.delay_rule(), synapse.spike_.recordsz, self._min_delay)
        delay, width = self._delays_of_taps(self.delay), self._spread
        return ops.Spread.of(delay, weight, back, width, *how, backend=self.backend)

    def _shared(self, coefficients: Coefficients) -> ops.Shared | None:
        """The present connections, if they share delays and make a single dense product.

        A strategy that is asked for takes them one by one.
        """
        if self._delays == "connection" or self.strategy != "auto":
            return None
        delay = self._delays_of_taps(self._read_delay())
        rule = self.synapse.delay_rule()
        return ops.shared(self._weights(), delay, coefficients.rates, rule, self._min_delay)

    # -- state --------------------------------------------------------------------------------

    def check_at_home(self) -> None:
        self.synapse.check_at_home()

    def clear(self, mask: Tensor | None = None, *, keep_adaptations: bool = False) -> None:
        """Clears the state of the synapses: a past of zeros, no autograd graph.

        Args:
            mask: bool ``[B]``: only these samples are cleared; None for all.
            keep_adaptations: as inferno's layers pass it on; there are none here.

        Raises:
            TypeError, ValueError: the mask is of another kind or shape, or on another device.
            RuntimeError: within a block of :meth:`unrolled`, or in a backward pass.
        """
        self.synapse.clear(mask, keep_adaptations=keep_adaptations)

    def state(self) -> tuple[Tensor, ...]:
        """The state of the synapses, as :meth:`load_state` takes it.

        Returns:
            A tensor of each record, ``[K, B, in]``, the oldest observation first; the last one is
            that of the spikes. Without that, it is what :func:`tritonsyn.functional.delayed_linear`
            takes as ``initial``. All are copies, differentiable where a graph is recorded.

        Raises:
            RuntimeError: within a block of :meth:`unrolled`.
        """
        return self.synapse.state()

    def load_state(self, state: tuple[Tensor, ...]) -> None:
        """Goes on from a copy of what :meth:`state` gave, bit for bit; the batch becomes its own.

        Args:
            state: a tuple of a tensor for each record, ``[K, B, in]``, the oldest observation
                first.

        Raises:
            TypeError, ValueError: it is not of this kind, shape, dtype or device; nothing changes.
            RuntimeError: within a block of :meth:`unrolled`, or in a backward pass.
        """
        self.synapse.load_state(state)

    def detach_state(self) -> None:
        """Truncates backpropagation here; the state keeps its values.

        Raises:
            RuntimeError: within a block of :meth:`unrolled`.
        """
        self.synapse.detach_state()

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)
        self.synapse.check_state(state_dict, f"{prefix}synapse.", strict)

    # -- running ------------------------------------------------------------------------------

    def forward(
        self, x: Tensor | PackedSpikes, *, _run: Callable[[Any], Any] | None = None
    ) -> Tensor:
        """Advances by one step, or, with one axis more, by a sequence, as :meth:`scan` does.

        With gradients a step keeps the K observations that it reads, ``[K, B, in]``; to train, run
        a whole sequence, or where that depends on the outputs, :meth:`unrolled`.

        Args:
            x: input ``[B, in]`` or ``[T, B, in]``, bool, integer or floating. In a new or cleared
                layer the batch may be of any size.

        Returns:
            ``[B, out]`` or ``[T, B, out]`` in the dtype of the records; in nA, where weights have
            no unit. Differentiable (first order) to input, weights, delays, bias, constants and
            state.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        if _run is not None:
            return self._over_time(_run, x)
        if self._unrolling is not None:
            return self._unrolling.step(self._lowered(x))
        if is_sequence(x, self.step_axes + 1):
            return self._over_time(self._scan, x)
        return self._finished(self._planned(self._lowered(x), self._step))

    def _planned(self, rows: Any, call: Callable[[Any], Tensor]) -> Tensor:
        """What the call returns, by a plan where there is one."""
        if torch.compiler.is_compiling():
            return call(rows)
        y = self.synapse.again(self._parameters, rows)
        if y is not None:
            return y
        return self.synapse.planned(self._parameters, rows, lambda: call(rows))

    def _step(self, rows: Any) -> Tensor:
        synapse = self.synapse
        synapse.check_at_home()
        rows = synapse.check_step(rows)
        self._check_parameters()
        self._refuse_spread("run a sequence, or steps inside of `with layer.unrolled(...)`")
        coefficients = synapse.coefficients()
        shared = self._shared(coefficients)
        if shared is not None and shared.by_input:
            return ops.product(self._delayed(rows, coefficients, shared.times), shared.weight)
        if self._chosen(rows, coefficients) in ("gemm", "bits", "events"):
            # A sequence of one step; what is shifted is read in place.
            return self._sequence(rows.unsqueeze(0), coefficients).squeeze(0)
        taps = self.taps(coefficients)
        self._follow(rows.shape[0])
        synapse.step(rows, coefficients, self.backend)
        return synapse.project(taps)

    def _refuse_spread(self, advice: str) -> None:
        """Raises ``RuntimeError`` in a single step whose delays would learn by the spread."""
        if self._spreads():
            raise RuntimeError(
                f"spread={self._spread} looks at the steps around a delay, and a single step sees "
                f"none after it: {advice}, or set spread = 0. Without gradients single steps run "
                "as always"
            )

    def _delayed(self, rows: Tensor, coefficients: Coefficients, times: Tensor) -> Tensor:
        """Advances by an accepted step; the currents ``[B, I]``, each as it was its time ago."""
        self._follow(rows.shape[0])
        self.synapse.step(rows, coefficients, self.backend)
        return self.synapse.delayed(times)

    def _follow(self, batch: int) -> None:
        """Makes the batch that of accepted rows, or raises."""
        self.synapse.follow(batch, self.backend)

    def _check_parameters(self) -> None:
        """Raises an error where a parameter was replaced by one that does not fit."""
        device = self.synapse._storage.device
        for name, size in self._shapes.items():
            given = self._parameters.get(name)
            if given is None:
                continue
            # Every step comes here.
            fits = given.shape == size and given.device == device and given.dtype.is_floating_point
            if not fits:
                checks.check_parameter(name, given, size, device)

    def _chosen(self, rows: Tensor, coefficients: Coefficients) -> str:
        """The strategy for a step: the one asked for, or the cheapest."""
        if rows.device.type == "cpu":  # where all that is not asked for is one product
            return self.strategy
        sizes = self.weight.shape[0], self.synapse.spike_.recordsz
        decays = coefficients.dynamics.decays
        return ops.choose(self.strategy, rows.unsqueeze(0), *sizes, decays, at_rest=False)

    def scan(
        self, x: Tensor | PackedSpikes, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Advances by T steps at once; equals T calls of :meth:`forward`, in values and in state.

        Args:
            x: input ``[T, B, in]``, as for :meth:`forward`, or the same as
                :class:`~tritonsyn.functional.PackedSpikes`. T may be 0.
            lengths: steps of each sample, integers ``[B]`` in 0 to T: its state is then that at its
                own end, and its outputs after that are zero, the bias included.

        Returns:
            ``[T, B, out]`` in the dtype of the records.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device, or the strategy asked for cannot
                take this input. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        return self(x, _run=lambda x: self._scan(x, lengths))

    def unrolled(self, steps: int) -> AbstractContextManager["DelayedProjection"]:
        """Within the block the layer takes single steps that train fast, for recurrent networks.

        A step gives what it gives outside, values and gradients, but trains many times faster: the
        connections are prepared once, and get their gradient once, at the end. For the backward
        pass a step keeps one row of the currents, and that pass one row of the gradients of the
        outputs, whatever the longest delay is. Weights, delays and constants count as they are in
        the first step, and again in the first after grad mode has changed.

        Until the block ends only such steps can be taken, and :meth:`ahead` be called. Then, after
        an exception too, the state is that of the steps taken.

        Args:
            steps: how many there will be, at most.

        Returns:
            A context manager, which gives the layer itself.

        Raises:
            TypeError, ValueError: ``steps`` is not a positive integer; in the block: an input does
                not fit, or is one too many. The state is as before.
            RuntimeError: the block is inside of another one of this layer, or of a compiled
                function; in the block: anything else is done with the state.

        Example:
            >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
            >>> layer = DelayedLinear(3, 3, 1.0, synapse=physics, delay=10.0, batch_size=2)
            >>> z = torch.zeros(2, 3)
            >>> with layer.unrolled(20):
            ...     for x in torch.rand(20, 2, 3):
            ...         z = torch.sigmoid(x + layer(z))
        """
        return unrolled(self, self.synapse, steps, self._begin, self._finished)

    def _begin(self, x: Tensor, steps: int) -> ops.Tape:
        """A tape for a run of so many steps, the first of them with ``x [m, B, I]``."""
        self._check_parameters()
        synapse, coefficients = self.synapse, self.synapse.coefficients()
        taps, spread = self.taps(coefficients), self._spread_delays(coefficients)
        self._follow(x.shape[1])
        how: dict[str, Any] = {"least": self.least_steps, "spread": spread}
        return synapse.unroll(x, coefficients, taps, steps, **how)

    def ahead(self, z: Tensor) -> Tensor:
        """Several steps at once within :meth:`unrolled`, as many as no connection is faster than.

        A recurrent step ``z[j] = f(i[j] + layer(z[j-1]))`` depends on what was emitted
        ``min_delay`` before it, or earlier; so as many steps can be taken together. Morrison,
        Mehring, Geisel, Aertsen and Diesmann, Advancing the Boundaries of High-Connectivity Network
        Simulation with Distributed Computing (2005), doi:10.1162/0899766054026648, exchange spikes
        in such blocks.

        Args:
            z: ``[m, B, in]``: the inputs of the last ``m`` steps, zeros before the first one; every
                delay must be at least ``m - 1`` steps, which :attr:`min_delay` warrants.

        Returns:
            ``[m, B, out]``: what the call with the newest of these inputs would return, and the
            ``m - 1`` calls after it. The state is then that of ``m`` steps with ``z``.

        Raises:
            TypeError, ValueError: ``z`` does not fit, or ``m`` is too large.
            RuntimeError: the call is not within a block of :meth:`unrolled`.
        """
        return self(z, _run=self._ahead)

    def _ahead(self, z: Any) -> Tensor:
        if self._unrolling is None:
            raise RuntimeError("ahead works inside of `with layer.unrolled(steps)` only")
        rows = self._lowered(z)
        self.synapse.check_sequence(rows)
        if isinstance(rows, PackedSpikes):
            raise TypeError("z must be a tensor, but is PackedSpikes")
        most = self.least_steps + 1
        if not 1 <= rows.shape[0] <= most:
            raise ValueError(
                f"z must have 1 to {most} steps, one more than min_delay={self._min_delay} is, but "
                f"has {rows.shape[0]}"
            )
        return self._unrolling.steps(rows)

    def _scan(self, x: Any, lengths: Any = None) -> Tensor:
        rows = self._lowered(x)
        if lengths is None:
            return self._finished(self._planned(rows, self._sequence))
        self.synapse.check_sequence(rows)
        samples = self._samples(rows)
        lengths = checks.check_lengths(lengths, rows.shape[0], samples, rows.device)
        y = self._sequence(rows, lengths=lengths.repeat_interleave(rows.shape[1] // samples))
        return ops.silenced(self._finished(y), lengths)

    def _samples(self, rows: Tensor | PackedSpikes) -> int:
        """How many samples there are in rows of the synapses' batch, one after the other."""
        return rows.shape[1]

    def _sequence(
        self, rows: Any, coefficients: Coefficients | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        synapse = self.synapse
        synapse.check_at_home()
        synapse.check_sequence(rows)
        self._check_parameters()
        coefficients = coefficients or synapse.coefficients()
        project = self._projection(rows, coefficients)
        if (spread := self._spread_delays(coefficients)) is not None:
            project = partial(spread.projected, project=project)
        self._follow(rows.shape[1])
        if rows.shape[0] == 0:
            return self.weight.new_empty(0, synapse.batchsz, self.weight.shape[0])
        return synapse.scan_projected(rows, coefficients, project, lengths)

    def _projection(self, rows: Tensor | PackedSpikes, coefficients: Coefficients) -> Projection:
        """How the present connections project a sequence like this one."""
        strategy = checks.check_strategy(self.strategy, rows, coefficients.dynamics.decays)
        shared = self._shared(coefficients)
        if shared is not None:
            return partial(ops.project_shared, connections=shared)
        return partial(ops.project_sequence, taps=self.taps(coefficients), strategy=strategy)

    def _finished(self, y: Tensor) -> Tensor:
        """The bias added, in the dtype of the records and the form of the outputs."""
        if self.bias is not None:
            y = y + self.bias
        dtype = self.weight.dtype
        return self._raised(y if y.dtype == dtype else y.to(dtype))
