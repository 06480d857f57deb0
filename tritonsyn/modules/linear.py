"""A dense layer with delays on its connections."""

from typing_extensions import Unpack

from .. import checks
from .options import LayerOptions, lists_options_of
from .projection import DelayedProjection
from .synapse import SynapseConstructor


class DelayedLinear(DelayedProjection):
    r"""A dense layer of exponential synapses, each connection with a delay of its own, learned.

    .. math::
        y[t, b, o] = \mathrm{bias}_o + \sum_i w_{oi}\, I_{bi}(t\,\Delta t - d_{oi}),
        \qquad d_{oi} = \mathrm{clamp}(\mathrm{delay}_{oi}, d_{\min}, d_{\max})

    with the currents :math:`I` of the synapse, between steps as the synapse has them. It
    equals ``current_at`` and a weighted sum; the tensor ``[B, in, out]`` of delayed currents is
    never made.

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
        batch_size: rows of the batch; while the state is at rest it follows the input.
        batch_first: sequences, given and returned, have the batch before time, ``[B, T, in]``.
        weight_init, bias_init, delay_init: functions of the tensor to fill, which fill it (as those
            of ``torch.nn.init``) or return the values. By default weight and bias are uniform in
            :math:`\pm 1 / \sqrt{\mathrm{in}}` and delays uniform in :math:`[d_{\min}, d_{\max}]`.
        device, dtype: of parameters and records, as in every torch module. In bfloat16 and float16
            delays are coarse: eight and eleven bits.
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
        capturable, backend: as for the synapses.

    Attributes:
        weight: ``[out, in]``. With currents in nA and a dimensionless weight the output is in nA.
        delay: ``[out, in]``, of inputs ``[in]``, of outputs ``[out]``, ms. Outside of ``[min_delay,
            max_delay]`` a delay counts as the bound, and its gradient is zero;
            :meth:`clamp_delays_` brings it back.
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

    @lists_options_of(DelayedProjection)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        step_time: float,
        *,
        synapse: SynapseConstructor,
        delay: float,
        **options: Unpack[LayerOptions],
    ) -> None:
        inputs = checks.positive_integer("in_features", in_features)
        outputs = checks.positive_integer("out_features", out_features)
        checks.check_row("out_features", outputs)
        checks.check_count("in_features times out_features", (outputs, inputs))
        size = (outputs, inputs), inputs
        super().__init__(*size, step_time, synapse=synapse, delay=delay, **options)
        self.in_features, self.out_features = inputs, outputs

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"max_delay={self.max_delay}, delays={self.delays}, bias={self.bias is not None}, "
            f"strategy={self.strategy}"
        )
