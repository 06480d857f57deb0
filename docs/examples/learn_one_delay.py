"""Learns one delay from data: from the spikes into a synapse, and the current that comes out.

python docs/examples/learn_one_delay.py  # needs only tritonsyn, 4 s

The current of the target arrives 13.4 ms after the spikes. The model gets the same spikes. Its
delay is 2 ms at first, and learns for 100 updates from the difference between the two currents.
"""

import torch
from torch.nn.functional import mse_loss

from tritonsyn import DelayedLinear, DoubleExponentialCurrent

TRUE_DELAY, FIRST_GUESS, LONGEST = 13.4, 2.0, 20.0  # ms; the longest bounds the other two


def connection(delay: float) -> DelayedLinear:
    """One input, one output, a synapse between them, and this delay in ms."""
    return DelayedLinear(
        in_features=1,
        out_features=1,
        step_time=1.0,  # ms
        synapse=DoubleExponentialCurrent.partialconstructor(5.0, 6.0, 2.0),  # pC, ms, ms
        delay=LONGEST,
        weight_init=torch.ones_like,
        delay_init=lambda empty: torch.full_like(empty, delay),
    )


def main() -> None:
    torch.manual_seed(0)
    target, model = connection(TRUE_DELAY), connection(FIRST_GUESS)
    optimizer = torch.optim.Adam([model.delay], lr=0.3)
    for update in range(1, 101):
        spikes = (torch.rand(100, 16, 1) < 0.05).float()  # 100 steps, 16 samples, 1 input
        target.clear()  # both start each sequence without a past
        model.clear()
        with torch.no_grad():
            wanted = target(spikes)
        loss = mse_loss(model(spikes), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_delays_()  # a step of the optimiser may lead out of 0 to 20 ms
        if update % 10 == 0:
            print(f"update {update:3d}: delay {model.delay.item():5.2f} ms, loss {loss.item():.5f}")
    print(f"learned {model.delay.item():.2f} ms, planted {TRUE_DELAY} ms")


if __name__ == "__main__":
    main()
