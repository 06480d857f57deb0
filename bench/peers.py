"""Other libraries, each made to compute the very same thing; and those that cannot.

Left out, and why:

* SpikingJelly 2.0: its ``SynapseFilter`` does not decay in a step with a spike, which is another
  model; and it requires torchvision and torchaudio.
* norse 1.1 steps by Euler, with ``1 - dt / tau`` for ``exp(-dt / tau)``.
* sinabs, rockpool: a spike's own contribution decays in its step; exodus needs ``nvcc``.
* GeNN, brainevent: not PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import oracle
import torch
from providers import (
    CEILINGS,
    ByConnection,
    ByWindows,
    Compiled,
    Inferno,
    InFull,
    Job,
    OneByOne,
    Plain,
    Provider,
    Spread,
    Strategy,
    Tritonsyn,
    not_installed,
    trained,
)  # fmt: skip
from workloads import PHYSICS, STEP_TIME, Project, Scan, Shift, Tensors


def _physics() -> tuple[float, float, float]:
    """Time constant, decay of a step and gain of the single synapse."""
    charge, tau = PHYSICS["single"].values()
    return tau, math.exp(-STEP_TIME / tau), charge / tau


class SnnTorch(Provider):
    """snntorch's ``Synaptic``: its current ``I = alpha I + x``, of an input times the gain.

    It computes a membrane potential besides, which has no threshold to reach here.
    """

    name = "snntorch"

    def offers(self, work, device):
        # No delays, hence no record; one time constant; and its Alpha is another double.
        plain = isinstance(work, Scan) and work.record == 0 and work.kind == "single"
        return plain and work.source == "float" and "tau" not in work.gradients

    def missing(self, work):
        return not_installed("snntorch")

    def scan(self, work: Scan, inputs: Tensors) -> Job:
        import snntorch

        _, decay, gain = _physics()
        cell = snntorch.Synaptic(decay, 0.5, threshold=1e9, reset_mechanism="none")
        cell = cell.to(inputs[0].device, work.dtype)

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            with torch.set_grad_enabled(bool(work.gradients)):
                x = inputs[0].detach().requires_grad_(bool(work.gradients))
                current = membrane = torch.zeros_like(x[0], dtype=work.dtype)
                currents = []
                for row in x.unbind():
                    _, current, membrane = cell(row * gain, current, membrane)
                    currents.append(current)
                y = torch.stack(currents)
            return y, [x] if work.gradients else []

        return trained(work, forward, inputs[-1])


class AcceleratedScan(Provider):
    """accelerated-scan's first-order scan in Triton, in its own layout with its gates made before.

    Putting inputs and gates into ``[B, N, T]`` and summing the gradient to the gates into the one
    to tau are not timed: the figure is that of its kernels alone.
    """

    name = "accelerated-scan"
    devices = ("cuda",)

    def offers(self, work, device):
        plain = isinstance(work, Scan) and work.record == 0 and work.kind == "single"
        return super().offers(work, device) and plain and work.source != "bits"

    def missing(self, work):
        return not_installed("accelerated_scan")

    def scan(self, work: Scan, inputs: Tensors) -> Job:
        from accelerated_scan.scalar import scan

        tau, decay, gain = _physics()
        theirs = [t.to(work.dtype).permute(1, 2, 0).contiguous() for t in inputs]
        x = theirs[0] * gain
        gates = torch.full_like(x, decay)

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            with torch.set_grad_enabled(bool(work.gradients)):
                leaves = [t.detach().requires_grad_(bool(work.gradients)) for t in (x, gates)]
                y = scan(leaves[1], leaves[0])
            return y, leaves if work.gradients else []

        def finish(results: Tensors) -> Tensors:
            y, *gradients = results
            found = [y.permute(2, 0, 1)]
            if gradients:
                dx, dgates = gradients
                found.append((gain * dx).permute(2, 0, 1))
                by_decay = dgates.sum(dtype=torch.float64) * decay * STEP_TIME / tau**2
                by_gain = (dx * x).sum(dtype=torch.float64) / -tau
                found.append((by_decay + by_gain).to(work.dtype))
            return tuple(found[: 1 + len(work.gradients)])

        return trained(work, forward, theirs[-1], finish=finish)


class Dcls(Provider):
    """DCLS's temporal convolution of currents that are already there, in its own layout.

    One tap per connection, linear between two steps: at whole steps it computes the delayed layer.
    On a GPU it may use TF32, which PyTorch allows convolutions by default. Making the currents is
    not timed.
    """

    name = "DCLS"

    def offers(self, work, device):
        return isinstance(work, Project) and work.whole

    def missing(self, work):
        return not_installed("DCLS")

    def project(self, work: Project, inputs: Tensors) -> Job:
        from DCLS.construct.modules import Dcls1d

        x, weight, delay = inputs[:3]
        taps = work.record + 1
        layer = Dcls1d(
            work.synapses, work.outputs, kernel_count=1, dilated_kernel_size=taps, bias=False,
            version="v1",
        ).to(x.device, work.dtype)  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(weight.unsqueeze(-1))
            # Its positions count from the middle of the kernel, and the last tap is the present.
            back = (delay / STEP_TIME).round()
            layer.P.copy_((taps - 1 - back - taps // 2).unsqueeze(-1))
        currents = work.model(x)[0][1].to(work.dtype).permute(1, 2, 0)  # [B, I, T]
        currents = torch.nn.functional.pad(currents, (taps - 1, 0)).contiguous()
        theirs = [t.permute(1, 2, 0).contiguous() for t in inputs[3:]]

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            with torch.set_grad_enabled(work.gradient):
                given = currents.detach().requires_grad_(work.gradient)
                y = layer(given)
            return y, [given, layer.weight, layer.P] if work.gradient else []

        def finish(results: Tensors) -> Tensors:
            y, *gradients = results
            found = [y.permute(2, 0, 1)]
            if gradients:
                found.append(_to_spikes(gradients[0][..., taps - 1 :].permute(2, 0, 1)))
                found.append(gradients[1].squeeze(-1))
            return tuple(found)

        # TF32 keeps 10 bits of a factor; exact in float32, but for its normalisation's 1e-7.
        job = trained(work, forward, theirs[-1] if theirs else x, finish=finish)
        return replace(job, leniency=100 if x.is_cuda else 1)


class Lags(Provider):
    """The delays that snnTorch merged after 1.0.0 and that norse was offered, as they compute.

    In steps all lags of a buffer, in which the newest comes first, are weighted and summed; a
    whole sequence, in snnTorch alone, is a convolution along time for each channel.
    """

    def __init__(self, name: str, run: Callable[..., torch.Tensor]) -> None:
        self.name, self._run = name, run

    def offers(self, work, device):
        return isinstance(work, Shift)

    def shift(self, work: Shift, inputs: Tensors) -> Job:
        x, delay, dy = inputs

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            leaves = [x.detach().requires_grad_(), delay.detach().requires_grad_()]
            steps, slots = leaves[1] / STEP_TIME, work.record + 1
            y = self._run(leaves[0], lambda: oracle.weights_of_lags(steps, slots, work.interp))
            return y, leaves

        return trained(work, forward, dy)


def _lags_in_steps(x: torch.Tensor, weights: Callable[[], torch.Tensor]) -> torch.Tensor:
    buffer = torch.zeros(len(weights()), *x.shape[1:], dtype=x.dtype, device=x.device)
    outputs = []
    for row in x.unbind():
        buffer = torch.cat([row.unsqueeze(0), buffer[:-1]])
        outputs.append((buffer * weights().unsqueeze(1)).sum(0))
    return torch.stack(outputs)


def _lags_as_convolution(x: torch.Tensor, weights: Callable[[], torch.Tensor]) -> torch.Tensor:
    kernel = weights().flip(0).t().unsqueeze(1)
    padded = torch.nn.functional.pad(x.permute(1, 2, 0), (kernel.shape[2] - 1, 0))
    return torch.nn.functional.conv1d(padded, kernel, groups=x.shape[2]).permute(2, 0, 1)


def _to_spikes(dcurrent: torch.Tensor) -> torch.Tensor:
    """The gradient to the input ``[T, B, N]``, of that to the currents."""
    _, decay, gain = _physics()
    carried, found = torch.zeros_like(dcurrent[0], dtype=torch.float64), []
    for row in dcurrent.flip(0).unbind():
        carried = row + decay * carried
        found.append(gain * carried)
    return torch.stack(found).flip(0).to(dcurrent.dtype)


# On a CPU the kernels run interpreted: right, and far too slow to say anything.
PROVIDERS: list[Provider] = [
    *CEILINGS,
    Inferno(),
    Plain(),
    Compiled(),
    SnnTorch(),
    AcceleratedScan(),
    Dcls(),
    Lags("snnTorch's delay, in steps", _lags_in_steps),
    Lags("snnTorch's delay, a sequence", _lags_as_convolution),
    Tritonsyn("reference", ("cpu", "cuda")),
    Tritonsyn("triton", ("cuda",)),
    ByWindows("reference", ("cpu",)),
    ByWindows("triton", ("cuda",)),
    ByConnection("reference", ("cpu",)),
    ByConnection("triton", ("cuda",)),
    InFull("reference", ("cpu",)),
    InFull("triton", ("cuda",)),
    OneByOne("reference", ("cpu",)),
    OneByOne("triton", ("cuda",)),
    Spread("reference", ("cpu",)),
    Spread("triton", ("cuda",)),
    *(Strategy(strategy, "triton", ("cuda",)) for strategy in ("shift", "gemm", "bits", "events")),
]
