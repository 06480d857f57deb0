"""A learned delay of any signal."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..values import PackedSpikes, ReadRule, as_real, dense
from .delays import LearnedDelays, initialized, uniform
from .group import Group
from .options import Initializer, setting
from .record import RecordTensor
from .sequences import is_sequence

INTERPOLATIONS = ("previous", "nearest", "linear", "gaussian")
_NARROWEST = 1e-6
"""Steps: a narrower Gaussian counts as one without width, before its exponents overflow."""


def _known_interpolation(name: str, value: object) -> str:
    return checks.one_of(name, value, INTERPOLATIONS)


class Delay(Group, LearnedDelays):
    r"""Delays a signal, each channel by a time of its own, which can be learned.

    .. math::
        y[t, b, c] = x_{bc}(t\,\Delta t - d_c),
        \qquad d_c = \mathrm{clamp}(\mathrm{delay}_c, d_{\min}, d_{\max})

    The signal is anything with a value at each step: spikes, currents, potentials. Before its first
    step it is zero. At a delay of whole steps the output is the input, that many steps later; what
    it is in between is ``interp``'s:

    * ``"previous"``: the value before; ``"nearest"``: the closer one, in the middle the one before.
      Both are values of the signal, so that spikes stay spikes, and give delays no gradient.
    * ``"linear"``: on the straight line between both. The gradient of a delay is the slope there
      (at a whole step that of the segment before): it sees one step in each direction.
    * ``"gaussian"``: the mean of all values from 0 to K - 1 steps back, weighted by
      :math:`\exp(-(k \Delta t - d_c)^2 / 2 \sigma^2)`. The gradient sees some :math:`\sigma` far;
      shrink :attr:`sigma` in training. At 0 this is ``"nearest"``.

    Learned delays with a width that shrinks: Hammouamri, Khalfaoui-Hassani and Masquelier, Learning
    Delays in Spiking Neural Networks using Dilated Convolutions with Learnable Spacings (2023),
    doi:10.48550/arXiv.2306.17670.

    Args:
        shape: shape of the channels, an integer or a sequence of them.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        delay: longest delay :math:`d_{\max}`, ms, >= 0; kept as :attr:`max_delay`. The record keeps
            ``K = ceil(delay / step_time) + 1`` values of each channel.
        interp: the value between steps, as above; can be set at any time.
        sigma: width of ``"gaussian"``, ms, >= 0; None for a step. Can be set at any time.
        min_delay: shortest delay :math:`d_{\min}`, ms, in 0 to ``delay``.
        delay_shape: shape of the parameter, which broadcasts to ``shape``: None for a delay of each
            channel, 1 for one of all, ``(C, 1, 1)`` for one of each map of a picture.
        delay_init: function of the tensor to fill, which fills it (as those of ``torch.nn.init``)
            or returns the values; by default uniform in :math:`[d_{\min}, d_{\max}]`.
        batch_size: rows of the batch; a new or cleared module takes that of its input.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, *shape]``.
        device: of the parameter and the record; None for torch's default.
        dtype: of the parameter and the record: float64, float32, bfloat16 or float16; None for
            torch's default.
        capturable: keep the pointer on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default. A
            whole sequence under ``"gaussian"`` is made of PyTorch's own operations on each.

    Attributes:
        delay: of ``delay_shape``, ms. Outside of ``[min_delay, max_delay]`` a delay counts as the
            bound, and its gradient is zero; :meth:`clamp_delays_` brings it back.
        signal_: the record of the signal.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; the message names
            it, its value and the rule.

    Example:
        >>> layer = Delay(2, 1.0, delay=5.0, delay_init=lambda delay: torch.tensor([1.0, 2.5]))
        >>> x = torch.zeros(5, 1, 2)
        >>> x[0] = 1.0
        >>> layer.scan(x).detach().squeeze(1).T
        tensor([[0.0000, 1.0000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000, 0.0000]])
    """

    signal_: RecordTensor

    def __init__(
        self,
        shape: Sequence[int] | int,
        step_time: float,
        *,
        delay: float,
        interp: str = "linear",
        sigma: float | None = None,
        min_delay: float = 0.0,
        delay_shape: Sequence[int] | int | None = None,
        delay_init: Initializer | None = None,
        batch_size: int = 1,
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
        self._interp = _known_interpolation("interp", interp)
        self._sigma = self._dt if sigma is None else checks.nonnegative("sigma", sigma)
        self._min_delay = self._checked_min_delay(min_delay)
        self._delay_shape = checks.broadcasting_shape("delay_shape", delay_shape, self._sizes)
        dtype, device = checks.record_dtype(dtype), checks.device(device)
        self._add_record("signal_", batch_size, dtype, device)
        values = torch.empty(self._delay_shape, dtype=dtype, device=device)
        init = uniform(self._min_delay, self._delay) if delay_init is None else delay_init
        self.delay = initialized("delay_init", values, init)

    def _record_names(self) -> Sequence[str]:
        return ("signal_",)

    # -- properties ---------------------------------------------------------------------------

    interp: str = setting("interp", "The value between steps; see the class.", _known_interpolation)
    sigma: float = setting("sigma", "Width of ``gaussian``, ms.", checks.nonnegative)

    @property
    def max_delay(self) -> float:
        """Longest delay, ms. Setting it rebuilds the record and clears; delays stay."""
        return self._delay

    @max_delay.setter
    def max_delay(self, value: float) -> None:
        self._rebuild(delay=self._checked_max_delay(value))

    def extra_repr(self) -> str:
        width = f", sigma={self._sigma}" if self._interp == "gaussian" else ""
        return (
            f"{self._sizes}, step_time={self._dt}, max_delay={self._delay}, "
            f"interp={self._interp}{width}, delay_shape={self._delay_shape}"
        )

    # -- saved states -------------------------------------------------------------------------

    def own_keys(self) -> tuple[set[str], set[str]]:
        return set(), {"sigma"}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        saved = torch.tensor(self._sigma, dtype=torch.float64, device="cpu")
        destination[prefix + "sigma"] = saved

    def check_state(self, state_dict: dict[str, Any], prefix: str, strict: bool) -> None:
        super().check_state(state_dict, prefix, strict)
        try:
            checks.nonnegative("sigma", state_dict.get(prefix + "sigma", self._sigma))
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"of the saved state {prefix}{error}") from None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._sigma = checks.nonnegative("sigma", state_dict.get(prefix + "sigma", self._sigma))

    # -- running ------------------------------------------------------------------------------

    def forward(
        self, x: Tensor | PackedSpikes, *, _run: Callable[[Any], Any] | None = None
    ) -> Tensor:
        """Advances by one step, or, with one axis more, by a sequence, as :meth:`scan` does.

        Args:
            x: the signal ``[B, *shape]``, or ``[T, B, *shape]``: bool, integer or floating. In a
                new or cleared module the batch may be of any size.

        Returns:
            The delayed signal, shaped like ``x``, in the dtype of the record. Differentiable (first
            order) to the signal and, but for ``"previous"`` and ``"nearest"``, to the delays.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        if _run is not None:
            return self._over_time(_run, x)
        if is_sequence(x, len(self._sizes) + 2):
            return self._over_time(self._scan, x)
        x, delay = self.check_step(x), self._present_delay()
        self.follow(x.shape[0], self._backend)
        self.signal_.push(x)
        if (mode := self._mode()) == "gaussian":
            return self._weighted(delay)
        return self._read(delay.expand(1, *self._sizes), self._rule(mode, self._delay))

    def scan(
        self, x: Tensor | PackedSpikes, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Advances by T steps at once; equals T calls of :meth:`forward`, in values and in state.

        Args:
            x: the signal ``[T, B, *shape]``, as for :meth:`forward`, or the same as
                :class:`~tritonsyn.functional.PackedSpikes`. T may be 0.
            lengths: steps of each sample, integers ``[B]`` in 0 to T: its past is then that at its
                own end, and the delayed signal after that is zero.

        Returns:
            The delayed signal ``[T, B, *shape]``, in the dtype of the record.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device. The state is as before.
            RuntimeError: called in a backward pass, as by gradient checkpointing.
        """
        return self(x, _run=lambda x: self._scan(x, lengths))

    def _scan(self, x: Any, lengths: Any = None) -> Tensor:
        self.check_sequence(x)
        if lengths is not None:
            lengths = checks.check_lengths(lengths, x.shape[0], x.shape[1], x.device)
        x, delay, record = dense(x), self._present_delay(), self.signal_
        self.follow(x.shape[1], self._backend)
        steps, slots, dtype = x.shape[0], record.recordsz, record.storage.dtype
        if steps == 0:
            return record.storage.new_empty(x.shape)
        signal = as_real(x, dtype)
        if lengths is not None:
            signal = ops.input_until(signal, lengths)
        past, rows = record.history(slots - 1).flatten(2), signal.flatten(2)
        if (mode := self._mode()) == "gaussian":
            y = self._filtered(torch.cat((past, rows)), delay, steps)
        else:
            sel, rule = delay.expand(self._sizes).reshape(1, -1), self._rule(mode, self._delay)
            how: dict[str, Any] = {"pasts": [past], "slots": slots, "backend": self._backend}
            how |= {"owned": signal is not x}
            y = ops.select_scan([rows], sel, [None], rule, steps, **how)
        if lengths is None:
            record.extend(signal[-slots:], steps)
            return y.view(x.shape)
        before = record.history(slots).flatten(2)
        record.load(ops.last_rows(signal.flatten(2), lengths, slots, before).view(-1, *x.shape[1:]))
        return ops.silenced(y, lengths).view(x.shape)

    def _mode(self) -> str:
        """The interpolation; a Gaussian without width is the closer value."""
        narrow = self._interp == "gaussian" and self._sigma < _NARROWEST * self._dt
        return "nearest" if narrow else self._interp

    def _present_delay(self) -> Tensor:
        """The delays as they count in reads."""
        delay = self.delay
        checks.check_parameter("delay", delay, self._delay_shape, self._storage.device)
        return self._not_too_short(delay)

    def _rule(self, mode: str, limit: float) -> ReadRule:
        return ReadRule(mode, self._dt, limit)

    def _weights(self, delay: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Of some values in the record, so many around each delay, the first and the weights."""
        steps = delay.clamp(self._min_delay, self._delay) / self._dt
        sizes = self._sigma / self._dt, self.signal_.recordsz, span
        first, weights = ops.gaussian_weights(steps, *sizes)
        return first * self._dt, weights

    def _span(self) -> int:
        """How many values a Gaussian counts."""
        storage = self.signal_.storage
        return ops.gaussian_span(self._sigma / self._dt, len(storage), storage.dtype)

    def _filtered(self, rows: Tensor, delay: Tensor, steps: int) -> Tensor:
        """The weighted means of ``rows [K - 1 + T, B, N]``, for each of T steps."""
        slots, span, backend = self.signal_.recordsz, self._span(), self._backend
        narrow = slots >= 2 * span  # then it pays to bring what counts to one place first
        each = delay.flatten() if delay.numel() == 1 else delay.expand(self._sizes).flatten()
        first, weights = self._weights(each, span if narrow else slots)
        if narrow:
            rule = self._rule("previous", (slots - span) * self._dt)
            sel = first.expand(1, rows.shape[2])
            rows = ops.select_scan([rows], sel, [None], rule, steps + span - 1, backend=backend)
        return ops.filtered(rows, weights, backend=backend)

    def _weighted(self, delay: Tensor) -> Tensor:
        """The weighted mean of the present record."""
        slots, span = self.signal_.recordsz, self._span()
        first, weights = self._weights(delay, span)
        back = torch.arange(span, dtype=weights.dtype, device=weights.device) * self._dt
        times = (first.unsqueeze(-1) + back).expand(1, *self._sizes, span)
        values = self._read(times, self._rule("previous", (slots - 1) * self._dt))
        return (values * weights).sum(-1).to(values.dtype)

    def _read(self, times: Tensor, rule: ReadRule) -> Tensor:
        """The record at times before the present."""
        record = self.signal_
        how: dict[str, Any] = {"backend": self._backend}
        record_and_pointer = (record.storage,), times, (None,), (record.cursor,), rule
        value, (storage,) = ops.select(*record_and_pointer, **how)
        record.replace_storage(storage)
        return value
