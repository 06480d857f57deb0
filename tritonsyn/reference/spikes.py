"""The delayed projection of spikes, which are one bit each."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..values import WORD, PackedSpikes, SpikeTrains, dense, unpack_bits
from .projection import project, project_backward
from .scan import pack

Spikes = PackedSpikes | SpikeTrains

# Connections and spikes expanded at once, so that intermediate results stay near the cache.
_EXPANDED = 1 << 20


def pack_trains(x: Tensor | PackedSpikes, slots: int) -> Tensor:
    """The words of :class:`SpikeTrains` of ``x [T, B, N]``, anything but 0 being a spike."""
    steps, batch, synapses = x.shape
    width = SpikeTrains.width(steps, slots)
    spikes = torch.zeros(batch, synapses, WORD * width, dtype=torch.bool, device=x.device)
    first = WORD * SpikeTrains.lead(slots)
    spikes[..., first : first + steps] = dense(x).bool().permute(1, 2, 0)
    return torch.nn.functional.pad(pack(spikes.flatten(0, 1)).flatten(), (0, 2))


def project_spikes(spikes: Spikes, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    """``v[t, b, o] = sum_i weight[o, i] * x[t - back[o, i], b, i]`` with no spikes before the
    first.

    ``spikes [T, B, I]``, ``weight`` and ``back [O, I]``, ``back < slots``. The work of packed
    spikes is proportional to their number; that of bits over time depends neither on that nor on
    the longest delay. Returns ``[T, B, O]``.
    """
    if isinstance(spikes, SpikeTrains):
        steps = spikes.shape[0]
        return project(_sequence(spikes, slots), weight, back, steps, slots, "shift", "ieee")
    steps, batch, _ = spikes.shape
    outputs = weight.shape[0]
    # Rows beyond the end take what would arrive there.
    v = weight.new_zeros((steps + slots - 1) * batch * outputs)
    weights = weight.t().contiguous()
    for source, arrivals in _events(spikes, back, v.numel()):
        v.index_add_(0, arrivals.view(-1), weights[source].view(-1))
    return v.view(steps + slots - 1, batch, outputs)[:steps]


def project_spikes_weight(dv: Tensor, spikes: Spikes, back: Tensor, slots: int) -> Tensor:
    """Adjoint of :func:`project_spikes` to the weight, ``[O, I]`` in the dtype of ``dv``."""
    if isinstance(spikes, SpikeTrains):
        sequence, steps = _sequence(spikes, slots), spikes.shape[0]
        way = (slots, "shift", "ieee")
        _, dweight = project_backward(dv, sequence, None, back, steps, *way)
        assert dweight is not None
        return dweight
    _, batch, outputs = dv.shape
    padded = torch.cat((dv, dv.new_zeros(slots - 1, batch, outputs))).view(-1)
    dweight = dv.new_zeros(back.shape[1], outputs)
    for source, arrivals in _events(spikes, back, padded.numel()):
        taken = padded.index_select(0, arrivals.view(-1)).view(arrivals.shape)
        dweight.index_add_(0, source, taken)
    return dweight.t().contiguous()


def _sequence(trains: SpikeTrains, slots: int) -> Tensor:
    """The spikes ``[T, B, N]`` as bools."""
    steps, batch, synapses = trains.shape
    first, width = WORD * trains.lead(slots), trains.width(steps, slots)
    words = trains.words[: batch * synapses * width].view(batch, synapses, width)
    return unpack_bits(words, WORD * width)[..., first : first + steps].movedim(-1, 0)


def _events(spikes: PackedSpikes, back: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Spikes in groups: the input of each, and its places of arrival ``[spikes, O]``.

    These are in ``[T, B, O]``, of ``size`` elements, flat.
    """
    outputs, batch = back.shape[0], spikes.shape[1]
    # int32 takes half the bytes.
    integer = torch.int32 if size < 2**31 else torch.int64
    later = back.t().to(integer) * (batch * outputs)
    later = later.add_(torch.arange(outputs, dtype=integer, device=back.device)).contiguous()
    x = unpack_bits(spikes.words.flatten(0, 1), spikes.synapses)
    group = max(1, _EXPANDED // max(outputs, 1))
    places, sources = (found.split(group) for found in x.nonzero(as_tuple=True))
    for place, source in zip(places, sources, strict=True):
        yield source, later[source].add_((place * outputs).unsqueeze(-1).to(integer))
