"""The step of an exponential synapse: decay, inject, record."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..values import Dynamics, Ring, Slot, as_real


def step(x: Tensor, ring: Ring, dynamics: Dynamics) -> Tensor:
    """One step in place, of one or two states: returns the current.

    ``x [B, N]``; of the records ``[K, B, N]`` the newest slot ``pointer - 1`` is read and the slot
    ``pointer`` is written; constants 0-d or ``[N]``. Where there are carries ``[B, N]``, they are
    read instead of the newest slot, and take the states as they are before the record rounds them;
    the current is then made of these.
    """
    records, pointers, spikes, spike_pointer, arrivals, carries = ring
    places = list(zip(records, map(int, pointers), strict=True))
    newest, rows = [r[slot - 1] for r, slot in places], [r[slot] for r, slot in places]
    x = x.resolve_neg()  # a pending negation fails where a bool is written
    y = _step(x, newest, rows, spikes[int(spike_pointer)], carries, dynamics)
    if arrivals is not None:
        for pointer in (*pointers, spike_pointer):
            if isinstance(pointer, Tensor):
                pointer.add_(1).remainder_(len(spikes))
    return y


def step_again(
    x: Tensor, ring: Ring, dynamics: Dynamics
) -> Callable[[Tensor, Sequence[Slot]], Tensor] | None:
    """:func:`step` on this ring at less cost, or None where that cannot be had.

    The records may be ``[K, B, *shape]``, the constants are 0-d. What is returned takes an input of
    the kind of ``x``, and the pointers of the records and of the spikes.
    """
    if ring.arrivals is not None:
        return None
    *records, spikes = (record.unbind(0) for record in (*ring.components, ring.spikes))
    gain, dtype = dynamics.gain, ring.components[0].dtype
    if dynamics.states == 1 and dtype == gain.dtype and gain.device.type == "cpu":
        (rows,), decay = records, dynamics.decays[0].item()

        def advance_one(x: Tensor, slots: Sequence[Slot]) -> Tensor:
            y, slot = scaled(x, gain), slots[0]
            y.add_(rows[slot - 1], alpha=decay)  # as _add_decayed does
            spikes[slots[-1]].copy_(x)
            rows[slot].copy_(y)
            return y

        return advance_one

    def advance(x: Tensor, slots: Sequence[Slot]) -> Tensor:
        newest = [record[slot - 1] for record, slot in zip(records, slots, strict=False)]
        rows = [record[slot] for record, slot in zip(records, slots, strict=False)]
        return _step(x, newest, rows, spikes[slots[-1]], ring.carries, dynamics)

    return advance


def _step(
    x: Tensor,
    newest: Sequence[Tensor],
    rows: Sequence[Tensor],
    spikes: Tensor,
    carries: Sequence[Tensor] | None,
    dynamics: Dynamics,
) -> Tensor:
    """A step from the newest rows, or from the carries, into other rows; returns the current."""
    gain, dtype = dynamics.gain, rows[0].dtype
    before = [state.to(gain.dtype) for state in carries or newest]
    states = advanced(before, scaled(x, gain), dynamics)
    # What can fail has succeeded before the first write, or is the first write.
    spikes.copy_(x)
    for row, state in zip(rows, states, strict=True):
        row.copy_(state)
    for carry, state in zip(carries or (), states, strict=False):
        carry.copy_(state)
    if carries is None:
        states = [state.to(dtype) for state in states]
    return dynamics.current_(states).to(dtype)


def advanced(before: Sequence[Tensor], drive: Tensor, dynamics: Dynamics) -> list[Tensor]:
    """The states one step later; the last one that is driven reuses the memory of the drive."""
    _, decays, coupling = dynamics
    if len(decays) == 2:
        first = _add_decayed(drive, before[0], decays[0], torch.empty_like(drive))
        return [first, _add_decayed(drive, before[1], decays[1], drive)]
    states = [_add_decayed(drive, before[0], decays[0], drive)]
    if coupling is not None:
        states.append(torch.addcmul(before[1], before[0], coupling).mul_(decays[0]))
    return states


def scaled(x: Tensor, gain: Tensor) -> Tensor:
    """``gain * x`` in new memory, in the dtype of the gain."""
    real = as_real(x, gain.dtype)
    return real * gain if real is x else real.mul_(gain)


def _add_decayed(drive: Tensor, before: Tensor, decay: Tensor, out: Tensor) -> Tensor:
    """``drive + decay * before``."""
    if decay.ndim == 0 and decay.device.type == "cpu":
        return torch.add(drive, before, alpha=decay.item(), out=out)
    return torch.addcmul(drive, before, decay, out=out)


def step_backward(
    dy: Tensor | None,
    drecords: Sequence[Tensor] | None,
    dcarries: Sequence[Tensor] | None,
    dynamics: Dynamics,
    pointers: Sequence[Slot],
    dx_dtype: torch.dtype | None,
    want_z: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Adjoint of :func:`step`; ``drecords`` and ``dcarries`` are updated in place.

    Without both, ``dy`` alone counts, and nothing is wanted of the state before.

    A state's gradient ``z``, what the current passes to it and what its record and its carry hold,
    leaves the written slot. What the step made of the state before joins the slot before, or where
    there are carries replaces theirs. Returns the gain times the ``z`` of the states that take the
    input, in ``dx_dtype`` (None: not wanted), and the ``z`` (empty unless ``want_z``).
    """
    gain, decays, coupling = dynamics
    zs: list[Tensor] = []
    befores: list[Tensor] = []
    for state, slot in zip(range(dynamics.states), map(int, pointers), strict=True):
        mix = dynamics.mix[state]
        if drecords is None:
            assert dy is not None
            zs.append(dy.to(gain.dtype) * mix)
            continue
        z = drecords[state][slot].to(gain.dtype, copy=True)
        if dy is not None and mix:
            z.add_(dy, alpha=mix)
        drecords[state][slot].zero_()
        if dcarries is None:
            befores.append(drecords[state][slot - 1].add_(z * dynamics.decay(state)))
        else:
            z.add_(dcarries[state])
            befores.append(torch.mul(z, dynamics.decay(state), out=dcarries[state]))
        zs.append(z)
    if coupling is not None and befores:
        befores[0].add_(zs[1] * (decays[0] * coupling))
    dx = None
    if dx_dtype is not None:
        taking = zs[0] if len(decays) == 1 else zs[0] + zs[1]
        dx = (taking * gain).to(dx_dtype)
    return dx, zs if want_z else []
