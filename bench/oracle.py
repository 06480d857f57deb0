"""The right answers, in float64 and as the formulas read: slow, and of no provider's making."""

import torch

Physics = dict[str, float | torch.Tensor]
"""Constants of a synapse by name."""
Components = list[tuple[float | torch.Tensor, torch.Tensor]]
"""Time constant and values ``[T, B, N]`` of each component."""


def components(kind: str, x: torch.Tensor, step_time: float, physics: Physics) -> Components:
    """Every step of a synapse that starts at rest; differentiable to all that is a tensor."""
    charge = physics["spike_charge"]
    if kind == "single":
        constants = [physics["time_constant"]]
        gain = charge / physics["time_constant"]
    else:
        constants = [physics["tc_decay"], physics["tc_rise"]]
        gain = charge / (physics["tc_decay"] - physics["tc_rise"])
    found: Components = []
    for constant in constants:
        decay = torch.exp(-step_time / torch.as_tensor(constant, dtype=torch.float64))
        value, values = torch.zeros_like(x[0], dtype=torch.float64), []
        for row in x.double().unbind():
            value = value * decay + gain * row
            values.append(value)
        found.append((constant, torch.stack(values)))
    return found


def total(parts: Components) -> torch.Tensor:
    """The current: the component, or the first minus the second."""
    return parts[0][1] if len(parts) == 1 else parts[0][1] - parts[1][1]


def delayed(parts: Components, times: torch.Tensor, step_time: float) -> torch.Tensor:
    """The current ``times`` before the last step, decayed from the observation before.

    ``times`` is ``[1 or B, N]`` or ``[1 or B, N, D]``.
    """
    times = times.double()
    back = (times / step_time).ceil()
    since = back * step_time - times
    values: Components = []
    for constant, steps in parts:
        newest_first = steps.flip(0)
        batch, synapses = steps.shape[1:]
        index = back.long().expand(batch, *times.shape[1:]).reshape(batch, synapses, -1)
        # [D, B, N] of [T, B, N], and back to the times' shape
        observed = newest_first.gather(0, index.permute(2, 0, 1)).permute(1, 2, 0)
        observed = observed.reshape(batch, *times.shape[1:])
        values.append((constant, observed * torch.exp(-since / constant)))
    return total(values)


def projected(
    parts: Components, weight: torch.Tensor, delay: torch.Tensor, step_time: float
) -> torch.Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * I_i(t - delay[o, i])``, tap after tap; from rest.

    Weighted, the connections that share a tap are one matrix product, so that what would be
    ``[T, B, I, O]`` numbers is never there. Differentiable to everything.
    """
    back = (delay.detach() / step_time).ceil()
    outputs = []
    for constant, steps in parts:
        scaled = weight * torch.exp(-(back * step_time - delay) / constant)
        y = steps.new_zeros(*steps.shape[:2], weight.shape[0])
        for tap in back.unique().long().tolist():
            if tap < len(steps):
                matrix = torch.where(back == tap, scaled, 0.0)
                reached = steps[: len(steps) - tap] @ matrix.T
                y = y + torch.nn.functional.pad(reached, (0, 0, 0, 0, tap, 0))
        outputs.append((constant, y))
    return total(outputs)


def weights_of_lags(delay: torch.Tensor, slots: int, interp: str) -> torch.Tensor:
    """How much of a signal ``[N]`` arrives after each whole lag, ``[K, N]``; delays in steps.

    The two lags around a delay, or all of them by a Gaussian as wide as a step; they sum to 1.
    """
    away = torch.arange(slots, dtype=delay.dtype, device=delay.device).unsqueeze(1) - delay
    heights = torch.relu(1 - away.abs()) if interp == "linear" else torch.exp(-away.square() / 2)
    return heights / heights.sum(0)


def summed_lags(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``y[t] = sum of weights[k] * x[t - k]`` over the lags, of ``x [T, B, N]``."""
    y = torch.zeros_like(x)
    for lag, weight in enumerate(weights.unbind()):
        shifted = torch.nn.functional.pad(x[: len(x) - lag], (0, 0, 0, 0, lag, 0))
        y = y + weight * shifted[: len(x)]
    return y
