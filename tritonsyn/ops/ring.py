"""The state of a group of synapses, as steps and sequences change it in place.

What is differentiated of a ring is its state: the records and, where there are any, the carries.
Every operation on it is a link in the chain of :mod:`tritonsyn.ops.record`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import PackedSpikes, Ring, Slot
from .common import flat_observation, flat_record, hand_over, own_gradient, unchained
from .record import add_row, place_of, read, write_rows


def ring_state(ring: Ring) -> tuple[Tensor, ...]:
    """What a step updates and differentiates: the records and, where there are any, the carries."""
    return (*ring.components, *(ring.carries or ()))


def flat_ring(ring: Ring, state: Sequence[Tensor]) -> Ring:
    """The ring with this state and one axis of synapses."""
    states = len(ring.components)
    return Ring(
        [flat_record(record) for record in state[:states]],
        ring.pointers,
        flat_record(ring.spikes),
        ring.spike_pointer,
        ring.arrivals,
        [flat_observation(carry) for carry in state[states:]] or None,
    )


def detached_ring(ring: Ring) -> Ring:
    """The same memory without a graph."""
    components = [record.detach() for record in ring.components]
    carries = [carry.detach() for carry in ring.carries or ()] or None
    return ring._replace(components=components, carries=carries)


def apart(x: Tensor | PackedSpikes, ring: Ring) -> Tensor | PackedSpikes:
    """The input, or a copy of one whose rows would be written before they are read."""
    if isinstance(x, Tensor):
        storage = x.untyped_storage()._cdata
        rings = (ring.spikes, *ring_state(ring))
        if any(tensor.untyped_storage()._cdata == storage for tensor in rings):
            return x.clone()
    return x


def newest(ring: Ring) -> list[Tensor]:
    """A copy of the present value of each state."""
    if ring.carries:
        return [carry.clone() for carry in ring.carries]
    pairs = zip(ring.components, ring.pointers, strict=True)
    return [read(record, (pointer - 1) % record.shape[0])[1] for record, pointer in pairs]


def extend_ring(
    ring: Ring, spikes: Tensor, steps: int, tails: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Takes the end of a sequence of so many steps into the ring, as they would have left it.

    ``spikes`` and ``tails [L, B, N]`` are the last inputs and the last values of each state, these
    in the dtype of the arithmetic. In place and differentiable; with ``arrivals`` the pointers
    advance. Returns the state.
    """
    last = len(spikes)
    places = [*zip(ring.components, ring.pointers, tails, strict=True)]
    *records, _ = [
        write_rows(record, rows.view(last, *record.shape[1:]), (slot + steps - last) % len(record))
        for record, slot, rows in (*places, (ring.spikes, ring.spike_pointer, spikes))
    ]
    carries = [
        unchained(carry).copy_(tail[-1].view(carry.shape))
        for carry, tail in zip(ring.carries or (), tails, strict=False)
    ]
    if ring.arrivals is not None:
        for pointer in (*ring.pointers, ring.spike_pointer):
            assert isinstance(pointer, Tensor)
            pointer.add_(steps).remainder_(len(ring.spikes))
    return (*records, *carries)


def last_spikes(x: Tensor | PackedSpikes, last: int) -> Tensor:
    """The last steps of an input ``[T, B, N]``."""
    if isinstance(x, PackedSpikes):
        return PackedSpikes(x.words[-last:], (last, *x.shape[1:])).dense()
    return x[-last:].detach()


def own_state(
    ctx: Any, given: Sequence[Tensor | None], states: int, dtype: torch.dtype
) -> list[Tensor]:
    """The gradients of records and carries that a link of the chain may write to.

    None where no operation before or after takes part. ``dtype`` is that of carries.
    """
    if all(d is None for d in given) and not any(ctx.needs_input_grad[-len(given) :]):
        return []
    records = [own_gradient(ctx, d) for d in given[:states]]
    return records + [own_gradient(ctx, d, ctx.record[0][1:], dtype) for d in given[states:]]


class Ends(NamedTuple):
    """Where a sequence starts and ends in a ring, for the backward pass of a Function.

    The Function takes the state as its last inputs and returns it as its last outputs.
    """

    newest: Sequence[Slot]
    """The slot of each state's value before the sequence."""
    places: Sequence[tuple[Any, Any]]
    """Those of its last values."""
    carried: bool

    @staticmethod
    def of(ring: Ring, steps: int) -> "Ends":
        slots = len(ring.spikes)
        last, pairs = min(steps, slots), list(zip(ring.components, ring.pointers, strict=True))
        return Ends(
            [(slot - 1) % slots for _, slot in pairs],
            [place_of((slot + steps - last) % slots, last, record) for record, slot in pairs],
            bool(ring.carries),
        )

    def wanted(self, ctx: Any) -> list[bool]:
        """Which parts of the state before want a gradient."""
        return list(ctx.needs_input_grad[-len(self.places) * (1 + self.carried) :])

    def arriving(
        self, ctx: Any, given: Sequence[Tensor | None], dtype: torch.dtype
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The gradients of the state before, as far as the sequence leaves it, and of its tails.

        Of the first there are none where no operation before or after takes part.
        """
        states = len(self.places)
        owned = own_state(ctx, given, states, dtype)
        if not owned:
            return [], [None] * states
        dtails: list[Tensor | None] = []
        for i, (way, slots) in enumerate(self.places):
            dtail = way.take(flat_record(owned[i]), slots).to(dtype)
            if self.carried:
                dtail[-1] += flat_observation(owned[states + i])
            dtails.append(dtail)
        return owned, dtails

    def leaving(
        self, ctx: Any, owned: Sequence[Tensor], dstarts: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of the state before; those of its present values are wanted if it is."""
        wanted = self.wanted(ctx)
        if not any(wanted):
            return [None] * len(wanted)
        states = len(self.places)
        for i, dstart in enumerate(dstarts):
            if self.carried:
                flat_observation(owned[states + i]).copy_(dstart)
            else:
                add_row(flat_record(owned[i]), self.newest[i], dstart.to(owned[i].dtype))
        return [hand_over(ctx, d, i) for i, d in enumerate(owned, -len(owned))]
