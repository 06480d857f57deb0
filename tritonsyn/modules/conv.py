"""Convolutions with delays on their connections."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from .. import checks, ops
from ..values import STRATEGIES, PackedSpikes
from .options import LayerOptions, lists_options_of, setting
from .projection import DelayedProjection
from .synapse import Coefficients, Projection, SynapseConstructor

_STRATEGIES = ("auto", "shift", "gemm")
_NO_TAPE = (
    "a delayed convolution has no tape: give it whole sequences, or single steps where the next "
    "input depends on the output"
)


def _known_strategy(name: str, value: object) -> str:
    known = checks.one_of(name, value, STRATEGIES)
    if known not in _STRATEGIES:
        raise ValueError(
            f"{name} {known!r} is for dense layers; a convolution takes {', '.join(_STRATEGIES)}"
        )
    return known


def _sizes(name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """One integer for all axes, or one for each."""
    each = [value] * axes if not isinstance(value, Sequence) or isinstance(value, str) else value
    if len(each) != axes:
        raise ValueError(
            f"{name} must be an integer or a sequence of {axes}, but is {checks.shown(value)}"
        )
    numbers = tuple([checks.integer(name, number) for number in each])
    if any(number < least for number in numbers):
        raise ValueError(f"{name} must be at least {least}, but is {checks.shown(value)}")
    return numbers


def _padding(
    padding: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each axis."""
    if not isinstance(padding, str):
        return tuple([(n, n) for n in _sizes("padding", padding, len(kernel), least=0)])
    if checks.one_of("padding", padding, ("same", "valid")) == "valid":
        return ((0, 0),) * len(kernel)
    if any(n != 1 for n in stride):
        raise ValueError(f"padding 'same' needs a stride of 1, but stride is {stride}")
    added = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple([(n // 2, n - n // 2) for n in added])


class _DelayedConv(DelayedProjection):
    """What the convolutions share, over any number of axes.

    The synapses are one for each channel, and their batch is that of the input times its positions:
    rows ``[B * positions, C]``.
    """

    kinds_of_delays = ("connection", "input")
    axes: ClassVar[int]
    """Axes of the positions."""

    @lists_options_of(DelayedProjection)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        step_time: float,
        *,
        synapse: SynapseConstructor,
        delay: float,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        **options: Unpack[LayerOptions],
    ) -> None:
        inputs = checks.positive_integer("in_channels", in_channels)
        outputs = checks.positive_integer("out_channels", out_channels)
        groups = checks.positive_integer("groups", groups)
        for name, number in (("in_channels", inputs), ("out_channels", outputs)):
            if number % groups:
                raise ValueError(f"{name} must be divisible by groups, {groups}, but is {number}")
        kernel = _sizes("kernel_size", kernel_size, self.axes)
        stride = _sizes("stride", stride, self.axes)
        dilation = _sizes("dilation", dilation, self.axes)
        zeros = _padding(padding, kernel, stride, dilation)
        checks.one_of("padding_mode", padding_mode, ("zeros",))
        _known_strategy("strategy", options.get("strategy", "auto"))
        size = outputs, inputs // groups, *kernel
        checks.check_row("in_channels times kernel_size", inputs, *kernel)
        checks.check_row("out_channels", outputs)
        checks.check_count("out_channels times in_channels times kernel_size", size)
        super().__init__(size, inputs, step_time, synapse=synapse, delay=delay, **options)
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, kernel
        self.stride, self.dilation, self.groups, self.padding = stride, dilation, groups, padding
        self._zeros = zeros
        self._size = (1,) * self.axes
        self._coming = (1, *self._size)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, delays={self.delays!r}, max_delay={self.max_delay}, "
            f"bias={self.bias is not None}, strategy={self.strategy}"
        )

    strategy: str = setting(
        "strategy", "How a sequence is computed; see the class.", _known_strategy
    )

    # -- batch and size -----------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the input's axes after the channels, which the state has; ones in a new layer.

        Setting it rebuilds the records and clears. A new or cleared layer takes that of its input.
        """
        return self._size

    @size.setter
    def size(self, value: int | Sequence[int]) -> None:
        self._rest(self.batchsz, _sizes("size", value, self.axes))

    @property
    def batchsz(self) -> int:
        """Batch size. Setting it rebuilds the records and clears.

        A new or cleared layer takes that of its input.
        """
        return self.synapse.batchsz // math.prod(self._size)

    @batchsz.setter
    def batchsz(self, value: int) -> None:
        self._rest(checks.positive_integer("batchsz", value), self._size)

    def _rest(self, batch: int, size: tuple[int, ...]) -> None:
        checks.check_count("batchsz times size", (batch, *size))
        self.synapse.batchsz = batch * math.prod(size)
        self._size = size

    def _follow(self, batch: int) -> None:
        samples, *size = self._coming
        if (samples, *size) != (self.batchsz, *self._size):
            synapse = self.synapse
            if not all(record.at_rest for record in (*synapse.component_records(), synapse.spike_)):
                advice = "call clear() first: at rest both follow the input"
                if synapse.capturable or torch.compiler.is_compiling():
                    advice = "set batchsz and size, which clears, outside of torch.compile"
                raise ValueError(
                    f"x has a batch of {samples} and a size of {tuple(size)}, but the state is of "
                    f"a batch of {self.batchsz} and a size of {self._size}; {advice}"
                )
            super()._follow(batch)
            self._size = tuple(size)

    def clear(self, mask: Tensor | None = None, *, keep_adaptations: bool = False) -> None:
        """Clears the state of the synapses: a past of zeros, no autograd graph.

        Args:
            mask: bool ``[B]``: only these samples are cleared; None for all.
            keep_adaptations: as inferno's layers pass it on; there are none here.

        Raises:
            TypeError, ValueError: the mask is of another kind or shape, or on another device.
            RuntimeError: in a backward pass.
        """
        if mask is not None:
            mask = checks.check_mask(mask, (self.batchsz,), self.weight.device)
            mask = mask.repeat_interleave(math.prod(self._size))
        super().clear(mask, keep_adaptations=keep_adaptations)

    def state(self) -> tuple[Tensor, ...]:
        """The state of the synapses, as :meth:`load_state` takes it.

        Returns:
            A tensor of each record, ``[K, B, *size, C]``, the oldest observation first and the
            channels last. All are copies, differentiable where a graph is recorded.
        """
        return tuple([part.unflatten(1, (-1, *self._size)) for part in super().state()])

    def load_state(self, state: tuple[Tensor, ...]) -> None:
        """Goes on from a copy of what :meth:`state` gave, in its batch and its size.

        Args:
            state: a tuple of a tensor for each record, ``[K, B, *size, C]``.

        Raises:
            TypeError, ValueError: it is not of this kind, shape, dtype or device; nothing changes.
            RuntimeError: in a backward pass.
        """
        parts = state if isinstance(state, tuple) else ()
        shapes = [tuple(getattr(part, "shape", ())) for part in parts]
        shape, slots = shapes[0] if shapes else (), self.synapse.spike_.recordsz
        fits = len(shape) == 3 + self.axes and 0 not in shape and len(set(shapes)) == 1
        if not fits or (shape[0], shape[-1]) != (slots, self.in_channels):
            size = "L" if self.axes == 1 else "H, W"
            raise ValueError(
                f"state must be a tuple of tensors ({slots}, B, {size}, {self.in_channels}), but "
                + (f"has the shapes {shapes}" if any(shapes) else f"is {checks.shown(state)}")
            )
        super().load_state(tuple([part.flatten(1, -2) for part in parts]))
        self._size = shape[2:-1]

    # -- delays -------------------------------------------------------------------------------

    def taps(self, coefficients: Coefficients) -> ops.Taps:
        """The present connections as taps ``[O / groups, C * places]``, of all groups side by side.

        So each input has its own columns, where its constants may differ from others'.
        """
        synapse, places = self.synapse, math.prod(self.kernel_size)
        rule, slots = synapse.delay_rule(), synapse.spike_.recordsz
        rates = [r.repeat_interleave(places) if r.ndim else r for r in coefficients.rates]
        how = (rates, rule, slots, self._min_delay)
        weight, delay = self._side_by_side(self.weight), self._side_by_side(self._read_delay())
        return ops.taps(weight, delay, *how, backend=self.backend)

    def _spread_delays(self, coefficients: Coefficients) -> Any:
        if not self._spreads():
            return None
        synapse, weight = self.synapse, self.weight.detach()
        how = synapse.delay_rule(), synapse.spike_.recordsz, self._min_delay
        settings = ops.SpreadSettings.of(self._spread, *how, self.backend)
        windows = self._windows(self._coming[1:])
        if self._delays == "input":
            delay, back = self.delay.unsqueeze(0), self.delay_steps.unsqueeze(0)
        else:
            delay, weight = self._side_by_side(self.delay), self._side_by_side(weight)
            with torch.no_grad():
                back = self.taps(coefficients).back
        return ops.SpreadWindows(delay, weight, back, settings, windows)

    def _side_by_side(self, values: Tensor) -> Tensor:
        """``[O, C / groups, *kernel]`` as ``[O / groups, C * places]``."""
        return values.flatten(1).unflatten(0, (self.groups, -1)).transpose(0, 1).flatten(1)

    # -- state --------------------------------------------------------------------------------

    def own_keys(self) -> tuple[set[str], set[str]]:
        return {"size"}, set()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "size"] = torch.tensor(self._size, device="cpu")

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)
        size, rows = state_dict.get(prefix + "size"), self.synapse.batchsz
        storage = state_dict.get(f"{prefix}synapse.spike_.storage")
        if isinstance(storage, Tensor):
            rows = storage.shape[1]
        numbers = list(self._size) if size is None else size
        if checks.is_readable(numbers):
            numbers = numbers.tolist()
        fits = isinstance(numbers, list) and len(numbers) == self.axes
        if not fits or any(type(n) is not int or n < 1 for n in numbers):
            raise RuntimeError(
                f"{prefix}size of the saved state is {checks.shown(size)}, but must be {self.axes} "
                "positive integers"
            )
        if rows % math.prod(numbers):
            raise RuntimeError(
                f"{prefix}size of the saved state is {numbers}, but its records are of {rows} "
                "samples times positions"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        _, _, missing, _, _ = args
        if prefix + "size" in state_dict:
            self._size = tuple(state_dict[prefix + "size"].tolist())
        else:
            missing.append(prefix + "size")

    # -- running ------------------------------------------------------------------------------

    def _lowered(self, x: Any) -> Tensor:
        if isinstance(x, PackedSpikes):
            checks.check_sequence(x)
            x = x.dense()
        x = checks.check_real("x", x)
        axes, channels = self.axes, self.in_channels
        if x.ndim not in (axes + 2, axes + 3) or x.shape[-axes - 1] != channels:
            step = ", ".join(("B", str(channels), *("L" if axes == 1 else "HW")))
            raise checks.misshapen("x", x, f"({step}), or (T, {step}) for a sequence")
        size = tuple(x.shape[-axes:])
        windows = self._windows(size)
        if min(*size, *windows.positions) < 1:
            raise ValueError(
                f"x has a size of {size}, padded {windows.padded}, but must have at least 1, and "
                f"padded, for kernel_size {self.kernel_size} with dilation {self.dilation}, at "
                f"least {windows.span}"
            )
        self._coming = (x.shape[-axes - 2], *size)
        return x.movedim(-axes - 1, -1).flatten(-axes - 2, -2)

    def _windows(self, size: tuple[int, ...]) -> ops.Windows:
        how = self.kernel_size, self.stride, self.dilation, self._zeros, self.groups
        return ops.Windows(size, *how)

    def _planned(self, rows: Any, call: Callable[[Any], Tensor]) -> Tensor:
        return call(rows)  # which is not launches only

    def _samples(self, rows: Tensor | PackedSpikes) -> int:
        return self._coming[0]

    def _scan(self, x: Any, lengths: Any = None) -> Tensor:
        if getattr(x, "ndim", 0) == self.step_axes:
            raise ValueError("x is the input of one step, but scan takes a sequence, time first")
        return super()._scan(x, lengths)

    def _step(self, rows: Any) -> Tensor:
        self._refuse_spread("run a sequence")
        if self._delays == "connection":
            return self._sequence(rows.unsqueeze(0)).squeeze(0)
        synapse = self.synapse
        synapse.check_at_home()
        rows = synapse.check_step(rows)
        self._check_parameters()
        coefficients = synapse.coefficients()
        delayed = self._delayed(rows, coefficients, self._delay_of_inputs()).unsqueeze(0)
        return ops.convolve_rows(delayed, self.weight, self._windows(self._size)).squeeze(0)

    def _projection(self, rows: Tensor | PackedSpikes, coefficients: Coefficients) -> Projection:
        windows = self._windows(self._coming[1:])
        if self._delays == "connection":
            taps, strategy = self.taps(coefficients), self.strategy
            how: dict[str, Any] = {"windows": windows, "strategy": strategy}
            return partial(ops.project_windows, taps=taps, **how)
        times, rule = self._delay_of_inputs(), self.synapse.delay_rule()
        connections = ops.Shared(self.weight, times, coefficients.rates, rule, True)
        return partial(ops.project_windows_shared, connections=connections, windows=windows)

    def _delay_of_inputs(self) -> Tensor:
        return self._not_too_short(self._read_delay()).unsqueeze(0)

    def _finished(self, y: Tensor) -> Tensor:
        if y.ndim == 3 and not len(y):  # of no step
            samples, *size = self._coming
            y = y.new_empty(0, samples, self.out_channels, *self._windows(tuple(size)).positions)
        if self.bias is not None:
            y = y + self.bias.view(-1, *[1] * self.axes)
        return y.to(self.weight.dtype).contiguous()

    def unrolled(self, steps: int) -> AbstractContextManager[Any]:
        """Refused: a convolution has no tape. Give it whole sequences, or single steps.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_TAPE)

    def ahead(self, z: Tensor) -> Tensor:
        """Refused, as :meth:`unrolled` is.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_TAPE)


class DelayedConv1d(_DelayedConv):
    r"""A convolution over a line of exponential synapses, each connection with a learned delay.

    .. math::
        y[t, b, o, p] = \mathrm{bias}_o + \sum_{c, q} w_{ocq}\,
        I_{bc}(t\,\Delta t - d_{ocq};\; p\,\mathrm{stride} + q\,\mathrm{dilation}
        - \mathrm{padding})

    with the currents :math:`I` of the synapse at each position, which is zero outside of the input.
    It equals ``current_at`` and a convolution; the windows of delayed currents are never made.

    Inputs are ``[B, C, L]`` or, of a sequence, ``[T, B, C, L]``; packed spikes are unpacked. A new
    or cleared layer takes any batch and size.

    Args:
        in_channels: number of input channels C; each has a synapse at each position.
        out_channels: number of output channels.
        kernel_size: positions of the kernel.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        synapse: what ``partialconstructor`` of a synapse returns, as for :class:`DelayedLinear`.
            Tensors of constants have one value per input channel.
        delay: longest delay, ms, >= 0; kept as ``max_delay``.
        stride: positions between two outputs.
        padding: zeros before and after the input; ``"same"`` or ``"valid"`` as for
            ``torch.nn.Conv1d``.
        dilation: positions between two elements of the kernel.
        groups: parts that channels are divided into; outputs read the inputs of their part.
        padding_mode: ``"zeros"``; there is no other.
        delays: what has a delay of its own: each ``"connection"``, which is an element of the
            kernel, or each ``"input"`` channel.
        min_delay: shortest delay, ms, in 0 to ``delay``.
        bias: whether there is a bias.
        batch_size: samples of the batch; a new or cleared module takes that of its input.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, C, L]``.
        weight_init: function of the tensor to fill, as for :class:`DelayedLinear`; None: uniform
            in :math:`\pm 1 / \sqrt{n}`, where an output reads :math:`n` elements.
        bias_init: the same for the bias; None as for the weights.
        delay_init: the same for the delays, ms; None: uniform between the shortest and the longest.
        device: of parameters and records; None for torch's default.
        dtype: of parameters and records, as for :class:`DelayedLinear`.
        strategy: with delays of connections, how a sequence is computed: ``"shift"`` (a cost that
            does not depend on the longest delay), ``"gemm"`` (a convolution over time, too, for
            short ones), or ``"auto"``: the one with the lower estimated cost.
        spread: how far delays see when they learn, ms; 0 for the exact derivative. As for
            :class:`DelayedLinear`; then single steps do not train.
        capturable: keep the pointers on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        weight: ``[out, in / groups, kernel]``.
        delay: ms, like ``weight``, or ``[in]``. Outside of ``[min_delay, max_delay]`` a delay
            counts as the bound, and its gradient is zero.
        bias: ``[out]`` or None.
        synapse: the synapses, with the state, a row for each sample and position.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message names
            it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import DelayedConv1d, SingleExponentialCurrent
        >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
        >>> layer = DelayedConv1d(2, 4, 3, 1.0, synapse=physics, delay=10.0, padding=1)
        >>> layer.scan(torch.rand(20, 8, 2, 50) < 0.1).shape
        torch.Size([20, 8, 4, 50])
    """

    axes, step_axes = 1, 3


class DelayedConv2d(_DelayedConv):
    r"""A convolution over a plane of exponential synapses, each connection with a learned delay.

    All is as in :class:`DelayedConv1d`, over two axes: inputs are ``[B, C, H, W]`` or
    ``[T, B, C, H, W]``. Sizes are one number or two, as for ``torch.nn.Conv2d``.

    Args:
        in_channels: number of input channels C; each has a synapse at each position.
        out_channels: number of output channels.
        kernel_size: rows and columns of the kernel.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        synapse: what ``partialconstructor`` of a synapse returns, as for :class:`DelayedLinear`.
            Tensors of constants have one value per input channel.
        delay: longest delay, ms, >= 0; kept as ``max_delay``.
        stride: positions between two outputs.
        padding: zeros around the input; ``"same"`` or ``"valid"`` as for ``torch.nn.Conv2d``.
        dilation: positions between two elements of the kernel.
        groups: parts that channels are divided into; outputs read the inputs of their part.
        padding_mode: ``"zeros"``; there is no other.
        delays: what has a delay of its own: each ``"connection"``, which is an element of the
            kernel, or each ``"input"`` channel.
        min_delay: shortest delay, ms, in 0 to ``delay``.
        bias: whether there is a bias.
        batch_size: samples of the batch; a new or cleared module takes that of its input.
        batch_first: sequences, given and returned, have the batch before time,
            ``[B, T, C, H, W]``.
        weight_init: function of the tensor to fill, as for :class:`DelayedConv1d`.
        bias_init: the same for the bias.
        delay_init: the same for the delays, ms.
        device: of parameters and records; None for torch's default.
        dtype: of parameters and records, as for :class:`DelayedLinear`.
        strategy: ``"shift"``, ``"gemm"`` or ``"auto"``, as for :class:`DelayedConv1d`.
        spread: how far delays see when they learn, ms; 0 for the exact derivative.
        capturable: keep the pointers on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        weight: ``[out, in / groups, *kernel]``.
        delay: ms, like ``weight``, or ``[in]``. Outside of ``[min_delay, max_delay]`` a delay
            counts as the bound, and its gradient is zero.
        bias: ``[out]`` or None.
        synapse: the synapses, with the state, a row for each sample and position.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message names
            it, its value and the rule.

    Example:
        >>> import torch
        >>> from tritonsyn import DelayedConv2d, SingleExponentialCurrent
        >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
        >>> how = {"delay": 10.0, "delays": "input", "stride": 2}
        >>> layer = DelayedConv2d(2, 4, (3, 5), 1.0, synapse=physics, **how)
        >>> layer.scan(torch.rand(20, 8, 2, 11, 13) < 0.1).shape
        torch.Size([20, 8, 4, 5, 5])
    """

    axes, step_axes = 2, 4
