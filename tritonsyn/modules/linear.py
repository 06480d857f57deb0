"""A dense layer with a delay on every connection."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import checks, ops
from ..checks import check_input
from ..ops.strategy import STRATEGIES
from ..values import PackedSpikes, ReadRule, whole_steps
from .synapse import ExponentialCurrent, SynapseConstructor

Initializer = Callable[[torch.Tensor], torch.Tensor | None]


class DelayedLinear(nn.Module):
    r"""A dense layer of exponential synapses, each connection with a delay of its own, learned.

    .. math::
        y[t, b, o] = \mathrm{bias}_o + \sum_i w_{oi}\, I_{bi}(t\,\Delta t - d_{oi}),
        \qquad d_{oi} = \mathrm{clamp}(\mathrm{delay}_{oi}, 0, d_{\max})

    with the currents :math:`I` of the synapse, decayed between steps from the earlier one. It
    equals ``current_at`` and a weighted sum; the tensor ``[B, in, out]`` of delayed currents is
    never made.

    Args:
        in_features: number of inputs, each with a synapse.
        out_features: number of outputs.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        synapse: what :meth:`SingleExponentialCurrent.partialconstructor` or that of the double
            synapse returns. Its tolerance applies to the delays.
        delay: longest delay :math:`d_{\max}`, ms, >= 0; kept as :attr:`max_delay`.
        bias: whether there is a bias.
        batch_size: rows of the batch.
        weight_init, bias_init, delay_init: functions of the tensor to fill, which fill it (as those
            of ``torch.nn.init``) or return the values. By default weight and bias are uniform in
            :math:`\pm 1 / \sqrt{\mathrm{in}}` and delays uniform in :math:`[0, d_{\max}]`.
        device, dtype: of parameters and records, as in every torch module. In bfloat16 and float16
            delays are coarse: eight and eleven bits.
        strategy: how a sequence is computed: ``"shift"`` (a cost that does not depend on the
            longest delay), ``"gemm"`` (a product of matrices for each delay, for short ones),
            ``"events"`` (in proportion to the spikes; for bool or packed input and one time
            constant), or ``"auto"``: the one that is counted to be the cheapest.
        capturable, backend: as for the synapses.

    Attributes:
        weight: ``[out, in]``. With currents in nA and a dimensionless weight the output is in nA.
        delay: ``[out, in]``, ms. Outside of ``[0, max_delay]`` a delay counts as the bound, and its
            gradient is zero; :meth:`clamp_delays_` brings it back.
        bias: ``[out]`` or None.
        synapse: the synapses, with the state.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message names
            it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import DelayedLinear, SingleExponentialCurrent
        >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
        >>> layer = DelayedLinear(3, 2, 1.0, synapse=physics, delay=10.0, batch_size=4)
        >>> layer.scan(torch.rand(20, 4, 3) < 0.1).shape
        torch.Size([20, 4, 2])

    Learned delays of connections: Hammouamri, Khalfaoui-Hassani and Masquelier, Learning Delays in
    Spiking Neural Networks using Dilated Convolutions with Learnable Spacings (2023),
    doi:10.48550/arXiv.2306.17670.
    """

    synapse: ExponentialCurrent

    def __init__(
        self,
        in_features: int,
        out_features: int,
        step_time: float,
        *,
        synapse: SynapseConstructor,
        delay: float,
        bias: bool = False,
        batch_size: int = 1,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        delay_init: Initializer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        strategy: str = "auto",
        capturable: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = checks.positive_integer("in_features", in_features)
        self.out_features = checks.positive_integer("out_features", out_features)
        self.strategy = checks.one_of("strategy", strategy, STRATEGIES)
        if not callable(synapse) or isinstance(synapse, nn.Module | type):
            raise TypeError(
                "synapse must be what a synapse's partialconstructor returns, "
                f"but is {synapse!r:.80}"
            )
        dtype, bias = checks.record_dtype(dtype), checks.flag("bias", bias)
        made = synapse(
            (self.in_features,), step_time, delay, batch_size,
            device=device, dtype=dtype, capturable=capturable, backend=backend,
        )  # fmt: skip
        if not isinstance(made, ExponentialCurrent):
            raise TypeError(f"synapse must make a synapse of tritonsyn, but makes {made!r:.80}")
        self.synapse = made
        size = (self.out_features, self.in_features)
        bound = 1 / math.sqrt(self.in_features)

        def uniform(low: float, high: float) -> Initializer:
            return lambda tensor: nn.init.uniform_(tensor, low, high)

        def parameter(name: str, shape: tuple[int, ...], init: Initializer) -> nn.Parameter:
            values = torch.empty(shape, device=device, dtype=dtype)
            return nn.Parameter(_initialized(name, values, init))

        spread = uniform(-bound, bound)
        self.weight = parameter("weight_init", size, weight_init or spread)
        self.delay = parameter("delay_init", size, delay_init or uniform(0.0, self.max_delay))
        if bias:
            self.bias = parameter("bias_init", size[:1], bias_init or spread)
        else:
            self.register_parameter("bias", None)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def max_delay(self) -> float:
        """Longest delay, ms. Setting it rebuilds the records and clears; delays stay."""
        return self.synapse.delay

    @max_delay.setter
    def max_delay(self, value: float) -> None:
        self.synapse.delay = value

    @property
    def dt(self) -> float:
        """Length of a step, ms. Setting it rebuilds the records and clears."""
        return self.synapse.dt

    @dt.setter
    def dt(self, value: float) -> None:
        self.synapse.dt = value

    @property
    def batchsz(self) -> int:
        """Batch size. Setting it rebuilds the records and clears."""
        return self.synapse.batchsz

    @batchsz.setter
    def batchsz(self, value: int) -> None:
        self.synapse.batchsz = value

    @property
    def backend(self) -> str | None:
        """As for the synapses."""
        return self.synapse.backend

    @backend.setter
    def backend(self, value: str | None) -> None:
        self.synapse.backend = value

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"max_delay={self.max_delay}, bias={self.bias is not None}, strategy={self.strategy}"
        )

    # -- delays -------------------------------------------------------------------------------

    @property
    def delay_steps(self) -> torch.Tensor:
        """Whole steps that each connection waits, ``[out, in]`` int32: ``ceil(delay / dt)``."""
        with torch.no_grad():
            return self._taps().back

    @torch.no_grad()
    def clamp_delays_(self) -> None:
        """Brings every delay into ``[0, max_delay]``; call it after an optimiser's step.

        A delay outside has no gradient, so that without this it would stay there.
        """
        self.delay.clamp_(0.0, self.max_delay)

    @torch.no_grad()
    def round_delays_(self) -> None:
        """Rounds every delay to whole steps, for hardware that knows no others."""
        steps = (self.delay / self.dt).round_()
        steps.clamp_(0, whole_steps(self.dt, self.max_delay))
        self.delay.copy_((steps * self.dt).clamp_(max=self.max_delay))

    def _taps(self) -> ops.Taps:
        synapse = self.synapse
        rates = synapse.coefficients().rates
        rule = ReadRule("expdecay", synapse.dt, synapse.delay, synapse.interp_tol)
        return ops.taps(self.weight, self.delay, rates, rule, synapse.spike_.recordsz)

    # -- state --------------------------------------------------------------------------------

    def clear(self, **kwargs: Any) -> None:
        """Resting state of the synapse."""
        self.synapse.clear(**kwargs)

    def detach_state(self) -> None:
        """Truncates backpropagation here; the state keeps its values."""
        self.synapse.detach_state()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        checks.check_saved_shapes(self._parameters, state_dict, prefix)
        self.synapse.check_state(state_dict, f"{prefix}synapse.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    # -- running ------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Advances by one step.

        With gradients a step keeps the K observations that it reads, ``[K, B, in]``; to train, run
        a whole sequence by :meth:`scan`.

        Args:
            x: input ``[B, in]``, bool, integer or floating.

        Returns:
            ``[B, out]`` in the dtype of the records.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
        """
        synapse = self.synapse
        check_input("x", x, synapse.batchedshape, self.weight.device)
        taps, records = self._taps(), synapse.component_records()
        synapse(x)
        storages = [record.storage for record in records]
        backend = synapse.backend
        wanted = [*taps.weights, *storages]
        graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted)
        if graph or torch.compiler.is_compiling():
            sequences = [record.history(record.recordsz) for record in records]
            y = ops.project(sequences, taps, 1, strategy="shift", backend=backend)[0]
        else:
            pointers = [record.cursor for record in records]
            y = ops.project_record(storages, pointers, taps, backend=backend)
        return self._finished(y)

    def scan(self, x: torch.Tensor | PackedSpikes) -> torch.Tensor:
        """Advances by T steps at once; equals T calls of :meth:`forward`, in values and in state.

        Args:
            x: input ``[T, B, in]``, as for :meth:`forward`, or the same as
                :class:`~tritonsyn.functional.PackedSpikes`. T may be 0.

        Returns:
            ``[T, B, out]`` in the dtype of the records.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device, or the strategy asked for cannot
                take this input. The state is as before.
        """
        synapse = self.synapse
        synapse.check_sequence(x)
        steps, slots = x.shape[0], synapse.spike_.recordsz
        if steps == 0:
            return synapse.scan(x).new_empty(0, synapse.batchsz, self.out_features)
        coefficients = synapse.coefficients()
        records = synapse.component_records()
        rest = all(record.at_rest for record in records)
        strategy = ops.choose(self.strategy, x, self.out_features, slots, coefficients.decays, rest)
        taps = self._taps()
        if strategy == "events":
            histories = None if rest else [record.history(slots) for record in records]
            synapse.advance(x)
            y = ops.project_spikes(
                x, taps, coefficients.gain, coefficients.decays, histories, slots,
                backend=synapse.backend,
            )  # fmt: skip
        else:
            sequences = synapse.scan_components(x)
            y = ops.project(sequences, taps, steps, strategy=strategy, backend=synapse.backend)
        return self._finished(y)

    def _finished(self, y: torch.Tensor) -> torch.Tensor:
        """The bias added, in the dtype of the records."""
        if self.bias is not None:
            y = y + self.bias
        return y.to(self.weight.dtype)


def _initialized(name: str, values: torch.Tensor, init: Initializer) -> torch.Tensor:
    """The tensor that an initialiser filled, or what it returned."""
    if not callable(init):
        raise TypeError(f"{name} must be a function of a tensor, but is {init!r:.80}")
    with torch.no_grad():
        result = init(values)
    result = values if result is None else result
    check_input(name, result, values.shape, values.device)
    if not result.is_meta and not result.isfinite().all():
        raise ValueError(f"{name} must give finite values")
    return result.detach().to(values.dtype).clone(memory_format=torch.contiguous_format)
