"""A dense layer with delays on its connections."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import checks
from ..ops.operator import traced_as
from ..values import Links
from .options import Initializer, LayerOptions, lists_options_of
from .projection import DelayedProjection
from .state import ordinary_tensors
from .synapse import SynapseConstructor


class _Linked(NamedTuple):
    """The connections of a mask, as it was at a version."""

    mask: Tensor
    version: int | None
    """None for an inference tensor, which counts none."""
    values: Tensor
    """A copy: the same may have been written again, as by data parallel training."""
    links: Links


def _link(mask: Tensor, version: int | None, before: _Linked | None) -> _Linked:
    """The connections of the mask, which may be those of before: finding them costs more."""
    if before is not None and before.values.device == mask.device:
        if torch.equal(before.values, mask):
            return before._replace(mask=mask, version=version)
    return _Linked(mask, version, mask.clone(), Links.of(mask))


def _known_links(layer: "DelayedLinear") -> Links | None:
    """Those of the present mask, if they are known: finding them waits for the device."""
    linked = layer._linked
    return linked.links if linked is not None and linked.mask is layer.mask else None


class DelayedLinear(DelayedProjection):
    r"""A dense layer of exponential synapses, each connection with a delay of its own, learned.

    .. math::
        y[t, b, o] = \mathrm{bias}_o + \sum_i w_{oi}\, I_{bi}(t\,\Delta t - d_{oi}),
        \qquad d_{oi} = \mathrm{clamp}(\mathrm{delay}_{oi}, d_{\min}, d_{\max})

    with the currents :math:`I` of the synapse, between steps as the synapse has them. It
    equals ``current_at`` and a weighted sum; the tensor ``[B, in, out]`` of delayed currents is
    never made.

    Learned delays of connections: Hammouamri, Khalfaoui-Hassani and Masquelier, Learning Delays in
    Spiking Neural Networks using Dilated Convolutions with Learnable Spacings (2023),
    doi:10.48550/arXiv.2306.17670.

    Args:
        in_features: number of inputs, each with a synapse.
        out_features: number of outputs.
        step_time: length of a step :math:`\Delta t`, ms, > 0.
        synapse: what :meth:`SingleExponentialCurrent.partialconstructor` or that of another
            synapse returns. Its tolerance applies to the delays.
        delay: longest delay :math:`d_{\max}`, ms, >= 0; kept as :attr:`max_delay`.
        delays: what has a delay of its own: each ``"connection"``, each ``"input"`` (axonal) or
            each ``"output"`` (dendritic). Shared delays make the layer a delayed read and one dense
            product, except where outputs delay inputs of different constants.
        min_delay: shortest delay :math:`d_{\min}`, ms, in 0 to ``delay``; with it, recurrent
            networks run in blocks (:meth:`ahead`).
        bias: whether there is a bias.
        batch_size: rows of the batch; a new or cleared module takes that of its input.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, in]``.
        weight_init: function of the tensor to fill, which fills it (as those of ``torch.nn.init``)
            or returns the values. None: uniform in :math:`\pm 1 / \sqrt{n}`, where an output reads
            :math:`n` inputs.
        bias_init: the same for the bias; None as for the weights.
        delay_init: the same for the delays, ms, such as one of :mod:`tritonsyn.init`. None: uniform
            in :math:`[d_{\min}, d_{\max}]`.
        mask: bool ``[out, in]``: which connections there are; None for all. The others count as
            0, have no gradient, and cost nothing where connections are summed one by one. Kept as
            a buffer, which may be changed.
        fan_in: instead of a mask, so many inputs of each output, drawn at random.
        device: of parameters and records; None for torch's default.
        dtype: of parameters and records: float64, float32, bfloat16 or float16; None for torch's
            default. In bfloat16 and float16 delays are coarse: eight and eleven bits.
        strategy: how a sequence is computed: ``"shift"`` (a cost that does not depend on the
            longest delay), ``"gemm"`` (a matrix product for each delay, for short ones),
            ``"bits"`` (a quicker sum of bool or packed input with one time constant), ``"events"``
            (of the same, proportional to the spikes), or ``"auto"``: the one with the lowest
            estimated cost.
        spread: how far delays see when they learn, ms (:attr:`spread` can be set at any time). 0:
            their gradient is the exact derivative. Above, it is the slope of the currents smoothed
            by a Gaussian of this standard deviation, which sees jumps from afar; all values, and
            all other gradients, stay exact. Then single steps do not train (sequences do, and steps
            inside of :meth:`unrolled`).
        capturable: keep the pointers on the device, for CUDA graphs and ``torch.compile``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; None for the package's default.

    Attributes:
        weight: ``[out, in]``. With currents in nA and a dimensionless weight the output is in nA.
        delay: ``[out, in]``, of inputs ``[in]``, of outputs ``[out]``, ms. Outside of ``[min_delay,
            max_delay]`` a delay counts as the bound, and its gradient is zero;
            :meth:`clamp_delays_` brings it back.
        bias: ``[out]`` or None.
        mask: ``[out, in]`` or None.
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
    """

    @lists_options_of(DelayedProjection)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        step_time: float,
        *,
        synapse: SynapseConstructor,
        delay: float,
        mask: Tensor | None = None,
        fan_in: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        inputs = checks.positive_integer("in_features", in_features)
        outputs = checks.positive_integer("out_features", out_features)
        checks.check_row("out_features", outputs)
        checks.check_count("in_features times out_features", (outputs, inputs))
        size = outputs, inputs
        mask = _connected(mask, fan_in, size, options.get("device"))
        if mask is not None:
            for name in ("weight_init", "bias_init"):
                if options.get(name) is None:
                    options[name] = _by_fan_in(mask)
        super().__init__(size, inputs, step_time, synapse=synapse, delay=delay, **options)
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("mask", mask)
        if mask is not None:
            with torch.no_grad():
                self.weight.masked_fill_(~mask, 0)
            self._links()

    mask: Tensor | None
    _linked: _Linked | None = None

    @traced_as(_known_links)
    def _links(self) -> Links | None:
        if self.mask is None or self.mask.is_meta:
            return None
        version = None if self.mask.is_inference() else self.mask._version
        linked = self._linked
        present = linked is not None and linked.mask is self.mask and linked.version == version
        if linked is None or version is None or not present:
            # Not the weight's device: a pruned one moves in the next call.
            size = self._shapes["weight"]
            mask = checks.check_mask(self.mask, size, self.synapse.spike_.storage.device)
            with ordinary_tensors():
                linked = _link(mask, version, linked)
            self.__dict__["_linked"] = linked
        return linked.links

    def _weights(self) -> Tensor:
        # Not a product, in which what is not finite would stay.
        return self.weight if self.mask is None else torch.where(self.mask, self.weight, 0.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._links()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._links()

    def _values(self) -> dict[str, Any]:
        return {name: value for name, value in super()._values().items() if name != "_linked"}

    def extra_repr(self) -> str:
        links = self._links()
        connections = "" if links is None else f"connections={len(links.places)}, "
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {connections}"
            f"max_delay={self.max_delay}, delays={self.delays}, bias={self.bias is not None}, "
            f"strategy={self.strategy}"
        )


def _connected(
    mask: Tensor | None, fan_in: int | None, size: tuple[int, int], device: Any
) -> Tensor | None:
    """A mask of its own for a layer of this size ``[O, I]``, given or drawn; None: all."""
    device = torch.empty(0, device=checks.device(device)).device
    if mask is not None:
        if fan_in is not None:
            raise ValueError(f"mask and fan_in={fan_in} were both given; one of them says it all")
        if isinstance(mask, Tensor):
            checks.check_holds_values("mask", mask, device)
            mask = mask.to(device)
        return checks.check_mask(mask, size, device).clone()
    if fan_in is None:
        return None
    count = checks.positive_integer("fan_in", fan_in)
    if count > size[1]:
        raise ValueError(f"fan_in must be at most in_features, {size[1]}, but is {count}")
    drawn = torch.rand(size, dtype=torch.float32, device=device).topk(count).indices
    return torch.zeros(size, dtype=torch.bool, device=device).scatter_(1, drawn, True)


def _by_fan_in(mask: Tensor) -> Initializer:
    """Uniform in plus and minus one over the root of the inputs that an output has."""
    bound = mask.sum(1).clamp_(min=1).rsqrt()

    def fill(tensor: Tensor) -> Tensor:
        nn.init.uniform_(tensor, -1.0, 1.0)
        return tensor.mul_(bound.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1)))

    return fill
