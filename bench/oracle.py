"""The right answers, in float64 and as the formulas read: slow, and of no provider's making."""

import math

import torch

Components = list[tuple[float, torch.Tensor]]
"""Time constant and values ``[T, B, N]`` of each component."""


def components(kind: str, x: torch.Tensor, step_time: float, **physics: float) -> Components:
    """Every step of a synapse that starts at rest."""
    charge = physics["spike_charge"]
    if kind == "single":
        constants = [physics["time_constant"]]
        gain = charge / physics["time_constant"]
    else:
        constants = [physics["tc_decay"], physics["tc_rise"]]
        gain = charge / (physics["tc_decay"] - physics["tc_rise"])
    found = []
    for constant in constants:
        value, values = torch.zeros_like(x[0], dtype=torch.float64), []
        for row in x.double().unbind():
            value = value * math.exp(-step_time / constant) + gain * row
            values.append(value)
        found.append((constant, torch.stack(values)))
    return found


def total(parts: Components) -> torch.Tensor:
    """The current: the component, or the first minus the second."""
    return parts[0][1] if len(parts) == 1 else parts[0][1] - parts[1][1]


def delayed(parts: Components, times: torch.Tensor, step_time: float) -> torch.Tensor:
    """The current ``times`` before the last step, decayed from the observation before."""
    back = (times.double() / step_time).ceil()
    since = back * step_time - times.double()
    values = []
    for constant, steps in parts:
        newest_first = steps.flip(0)
        index = back.long().expand(steps.shape[1:]).unsqueeze(0)
        observed = newest_first.gather(0, index).squeeze(0)
        values.append((constant, observed * torch.exp(-since / constant)))
    return total(values)
