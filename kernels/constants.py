"""Charge and time constants as the constants of a step, and the gradients back to them."""

import triton
import triton.language as tl

from .common import coefficient, divide, gradient, store_as
from .streams import READ, WRITE, streams


@triton.jit
def _loaded(ptr, offs_n, mask, PER_SYNAPSE: tl.constexpr, ACC: tl.constexpr):
    """A constant as a vector in the arithmetic's dtype."""
    value = coefficient(ptr, offs_n, mask, PER_SYNAPSE).to(ACC)
    return tl.zeros(offs_n.shape, ACC) + value


@triton.jit
def _usable(tau, step, HIGHEST: tl.constexpr, LONGEST: tl.constexpr):
    """The time constant, or the nearest one that the arithmetic takes; a NaN stays one."""
    shortest = tl.full(tau.shape, step / HIGHEST, tau.dtype)
    longest = tl.full(tau.shape, LONGEST, tau.dtype)
    return tl.where(tau < shortest, shortest, tl.where(tau > longest, longest, tau))


@triton.jit
def _apart(first, second, WIDTH: tl.constexpr):
    """The longer and the shorter time constant, moved apart where they are almost equal.

    Also ``(gap / total, lacking)``, of which their derivatives are made.
    """
    longer = tl.where(first > second, first, second)
    shorter = tl.where(first > second, second, first)
    total = longer + shorter
    gap = divide(longer - shorter, total)
    lacking = tl.minimum(tl.maximum(WIDTH - gap, 0.0), WIDTH)
    shift = total * (lacking * lacking) * (0.25 / WIDTH)
    return longer + shift, shorter - shift, gap, lacking


@triton.jit
def _rounding(tau, decay, step):
    """How far the time constant that a rounded decay stands for is from the one it was made of.

    In float64: the logarithm of a decay close to 1 takes all of its digits.
    """
    decay = decay.to(tl.float64)
    between = (decay > 0.0) & (decay < 1.0)
    exact = -step / tl.log(tl.where(between, decay, 0.5))
    return tl.where(between, exact - tau.to(tl.float64), 0.0)


@triton.jit
def _distance(longer, shorter, decay, rise_decay, step):
    """How far the time constants of two components are apart, by their rounded decays."""
    gap = longer.to(tl.float64) - shorter.to(tl.float64)
    off = _rounding(longer, decay, step) - _rounding(shorter, rise_decay, step)
    return (gap + tl.minimum(tl.maximum(off, -0.5 * gap), 0.5 * gap)).to(longer.dtype)


@triton.jit
def _rate_and_decay(tau, step):
    """Step over time constant, and the decay of a step, which all of float32 is taken from."""
    rate = divide(tl.full(tau.shape, 1.0, tau.dtype), tau) * tl.full(tau.shape, step, tau.dtype)
    return rate, tl.exp(-rate.to(tl.float64)).to(tau.dtype)


@triton.jit
def coefficients_kernel(
    charge_ptr, tau_ptr, rise_ptr,
    gain_ptr, decay_ptr, rise_decay_ptr, rate_ptr, rise_rate_ptr,
    step: tl.float64, N,
    CHARGE_PER_SYNAPSE: tl.constexpr, TAU_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    HIGHEST: tl.constexpr, LONGEST: tl.constexpr, WIDTH: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gain, decays and rates of N synapses; without ``rise_ptr`` of one time constant.

    A constant is one number, or ``[N]``; so is each result, by the constants that it is made of.
    Bytes per element in float32: charge 4,
    tau 4, rise 4, gain 4, decay 4, rise_decay 4, rate 4, rise_rate 4.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N
    # One number for the group is written once.
    once = offs_n < 1
    mask_tau = mask if TAU_PER_SYNAPSE or RISE_PER_SYNAPSE else once
    charge = _loaded(charge_ptr, offs_n, mask, CHARGE_PER_SYNAPSE, ACC)
    tau = _usable(_loaded(tau_ptr, offs_n, mask, TAU_PER_SYNAPSE, ACC), step, HIGHEST, LONGEST)
    if rise_ptr is not None:
        rise = _loaded(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE, ACC)
        tau, rise, _, _ = _apart(tau, _usable(rise, step, HIGHEST, LONGEST), WIDTH)
    rate, decay = _rate_and_decay(tau, step)
    distance = tau
    if rise_ptr is not None:
        rise_rate, rise_decay = _rate_and_decay(rise, step)
        tl.store(rise_rate_ptr + offs_n, rise_rate, mask=mask_tau)
        tl.store(rise_decay_ptr + offs_n, rise_decay, mask=mask_tau)
        distance = _distance(tau, rise, decay, rise_decay, step)
    tl.store(rate_ptr + offs_n, rate, mask=mask_tau)
    tl.store(decay_ptr + offs_n, decay, mask=mask_tau)
    mask_gain = mask if CHARGE_PER_SYNAPSE else mask_tau
    tl.store(gain_ptr + offs_n, divide(charge, distance), mask=mask_gain)


@triton.jit
def _kept(ptr, d, total, offs_n, mask, PER_SYNAPSE: tl.constexpr):
    """Stores a constant's gradient, or adds it up for one number; returns the sum so far."""
    if ptr is not None:
        if PER_SYNAPSE:
            store_as(ptr + offs_n, d, mask)
        else:
            total += tl.where(mask, d, 0.0)
    return total


@triton.jit
def _finished(ptr, total, PER_SYNAPSE: tl.constexpr):
    """Stores a program's sum of a constant that is one number."""
    if ptr is not None:
        if not PER_SYNAPSE:
            store_as(ptr + tl.program_id(0), tl.sum(total, axis=0), None)


@triton.jit
def coefficients_bwd_kernel(
    dgain_ptr, ddecay_ptr, drise_decay_ptr, drate_ptr, drise_rate_ptr, dcoupling_ptr,
    gain_ptr, decay_ptr, rise_decay_ptr, rate_ptr, rise_rate_ptr,
    tau_ptr, rise_ptr,
    dcharge_ptr, dtau_ptr, drise_ptr,
    step: tl.float64, N,
    CHARGE_PER_SYNAPSE: tl.constexpr, TAU_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    HIGHEST: tl.constexpr, LONGEST: tl.constexpr, WIDTH: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adjoint of ``coefficients_kernel`` to the constants, those of them that have a pointer.

    Any gradient may be absent. A single time constant has one rate, to which all three of
    ``drate``, ``drise_rate`` and ``dcoupling`` belong. Each program goes through its share of the
    synapses; of a constant that is one number it stores the sum, ``[programs]``.
    No streams: which arrays have N values, and which are there, differs from call to call.
    """
    TAUS_PER_SYNAPSE: tl.constexpr = TAU_PER_SYNAPSE or RISE_PER_SYNAPSE
    GAIN_PER_SYNAPSE: tl.constexpr = CHARGE_PER_SYNAPSE or TAUS_PER_SYNAPSE
    charge_total = tl.zeros([BLOCK], ACC)
    tau_total = tl.zeros([BLOCK], ACC)
    rise_total = tl.zeros([BLOCK], ACC)
    tiles = (N - 1) // BLOCK + 1  # tl.cdiv overflows for sizes just below 2**31
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        offs_n = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offs_n < N
        once = offs_n < 1
        # What is one number counts once, not once for each synapse.
        mask_tau = mask if TAUS_PER_SYNAPSE else once
        mask_gain = mask if GAIN_PER_SYNAPSE else once
        given = _loaded(tau_ptr, offs_n, mask, TAU_PER_SYNAPSE, ACC)
        usable = _usable(given, step, HIGHEST, LONGEST)
        tau = usable
        rate = _loaded(rate_ptr, offs_n, mask, TAUS_PER_SYNAPSE, ACC)
        decay = _loaded(decay_ptr, offs_n, mask, TAUS_PER_SYNAPSE, ACC)
        distance = tau
        if rise_ptr is not None:
            given_rise = _loaded(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE, ACC)
            usable_rise = _usable(given_rise, step, HIGHEST, LONGEST)
            rise_rate = _loaded(rise_rate_ptr, offs_n, mask, TAUS_PER_SYNAPSE, ACC)
            rise_decay = _loaded(rise_decay_ptr, offs_n, mask, TAUS_PER_SYNAPSE, ACC)
            tau, rise, gap, lacking = _apart(usable, usable_rise, WIDTH)
            distance = _distance(tau, rise, decay, rise_decay, step)
        dgain = gradient(dgain_ptr, offs_n, mask_gain, ACC)
        dcharge = divide(dgain, distance)
        charge_total = _kept(dcharge_ptr, dcharge, charge_total, offs_n, mask, CHARGE_PER_SYNAPSE)
        dgap = dcharge * _loaded(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE, ACC)
        drate = gradient(drate_ptr, offs_n, mask_tau, ACC)
        drate -= decay * gradient(ddecay_ptr, offs_n, mask_tau, ACC)
        drise_rate = gradient(drise_rate_ptr, offs_n, mask_tau, ACC)
        if rise_ptr is None:
            drate += drise_rate + gradient(dcoupling_ptr, offs_n, mask_tau, ACC)
            dtau = -divide(drate * rate, tau) - dgap
        else:
            drise_rate -= rise_decay * gradient(drise_decay_ptr, offs_n, mask_tau, ACC)
            dlonger = -divide(drate * rate, tau) - dgap
            dshorter = -divide(drise_rate * rise_rate, rise) + dgap
            # Through the moving apart; equal time constants share what reaches both.
            dlacking = (dlonger - dshorter) * lacking * (0.5 / WIDTH)
            dtotal = dlacking * (0.5 * lacking + gap)
            dlonger += dtotal - dlacking
            dshorter += dtotal + dlacking
            mean = 0.5 * (dlonger + dshorter)
            first, second = usable > usable_rise, usable < usable_rise
            dtau = tl.where(first, dlonger, tl.where(second, dshorter, mean))
            drise = tl.where(first, dshorter, tl.where(second, dlonger, mean))
            drise = tl.where(given_rise == usable_rise, drise, 0.0)
            rise_total = _kept(drise_ptr, drise, rise_total, offs_n, mask, RISE_PER_SYNAPSE)
        dtau = tl.where(given == usable, dtau, 0.0)
        tau_total = _kept(dtau_ptr, dtau, tau_total, offs_n, mask, TAU_PER_SYNAPSE)
    _finished(dcharge_ptr, charge_total, CHARGE_PER_SYNAPSE)
    _finished(dtau_ptr, tau_total, TAU_PER_SYNAPSE)
    _finished(drise_ptr, rise_total, RISE_PER_SYNAPSE)


STREAMS = {
    "coefficients_kernel": streams(
        "BLOCK",
        charge=READ.where(CHARGE_PER_SYNAPSE=True),
        tau=READ.where(TAU_PER_SYNAPSE=True),
        rise=READ.where(RISE_PER_SYNAPSE=True),
        gain=WRITE.where(CHARGE_PER_SYNAPSE=True),
        decay=WRITE.where(TAU_PER_SYNAPSE=True),
        rise_decay=WRITE.where(TAU_PER_SYNAPSE=True),
        rate=WRITE.where(TAU_PER_SYNAPSE=True),
        rise_rate=WRITE.where(TAU_PER_SYNAPSE=True),
    ),
    "coefficients_bwd_kernel": streams("BLOCK"),
}
