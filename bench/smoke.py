"""Runs every kernel once through the modules and compares it with the reference, on one device.

``python bench/smoke.py [device]``; small enough for ``compute-sanitizer``. Prints a line for each
operation, and fails if one is wrong.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

import tritonsyn
from tritonsyn.launch.config import LaunchConfig, override_config


class Size(NamedTuple):
    """How much is run."""

    steps: int = 9
    batch: int = 3
    synapses: int = 37
    delay: float = 5.0


USUAL = Size()
KINDS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "single": (tritonsyn.SingleExponentialCurrent, (10.0, 5.0)),
    "double": (tritonsyn.DoubleExponentialCurrent, (10.0, 6.0, 2.0)),
    "alpha": (tritonsyn.AlphaCurrent, (10.0, 3.0)),
}
Tensors = list[torch.Tensor]
Operation = Callable[[str], Tensors]


def operations(device: torch.device, size: Size = USUAL) -> Iterator[tuple[str, Operation]]:
    """What is run, by name: a function of the backend that gives all that it computes."""
    steps, batch, synapses, delay = size
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand((steps, batch, synapses), generator=generator) < 0.3).to(device)
    times = (torch.rand((batch, synapses, 2), generator=generator) * delay).to(device)
    for kind, (cls, physics) in KINDS.items():

        def synapse(
            backend: str, learned: bool = False, capturable: bool = False, cls=cls, physics=physics
        ) -> Any:
            constants = [
                torch.nn.Parameter(torch.full((synapses,), p, device=device)) if learned else p
                for p in physics
            ]
            make = cls.partialconstructor(*constants)
            return make(
                synapses, 1.0, delay, batch, backend=backend, device=device, capturable=capturable
            )

        def streaming(backend: str, capturable: bool = False, synapse=synapse) -> Tensors:
            module = synapse(backend, capturable=capturable)
            with torch.no_grad():
                currents = [module(row) for row in spikes.unbind()]
                return [*currents, module.current_at(times), module.spike_at(times).float()]

        def training(backend: str, synapse=synapse) -> Tensors:
            module, x = synapse(backend, learned=True), spikes.float().requires_grad_()
            selector = times.clone().requires_grad_()
            total = sum(
                (module(row) * i).sum() + module.current_at(selector).square().sum()
                for i, row in enumerate(x.unbind())
            )
            return list(torch.autograd.grad(total, [x, selector, *module.parameters()]))

        def sequence(backend: str, synapse=synapse) -> Tensors:
            module, x = synapse(backend, learned=True), spikes.float().requires_grad_()
            y = module.scan(x)
            gradients = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
            module.clear()
            packed = tritonsyn.functional.pack_spikes(spikes, backend=backend)
            return [y.detach(), *gradients, module.scan(packed).detach()]

        yield f"{kind}: steps and reads", streaming
        yield f"{kind}: steps and reads, capturable", partial(streaming, capturable=True)
        yield f"{kind}: steps and reads with gradients", training
        yield f"{kind}: sequences with gradients, and from bits", sequence
        if kind == "single":
            yield f"{kind}: sequences in parts", partial(in_parts, sequence)
    yield "record with gradients", lambda backend: record(backend, times)
    for kind in ("single", "alpha"):  # a tap for a connection, and two
        for strategy in ("shift", "gemm", "bits", "events"):
            run = partial(layer, kind=kind, spikes=spikes, delay=delay, strategy=strategy)
            yield f"{kind}: delayed linear layer with gradients, {strategy}", run
        run = partial(layer, kind=kind, spikes=spikes, delay=delay, strategy="shift", masked=True)
        yield f"{kind}: delayed linear layer with gradients, a third of the connections", run


def in_parts(sequence: Operation, backend: str) -> Tensors:
    """Sequences cut into chunks, as only much longer ones are by themselves."""
    with override_config(LaunchConfig(32, num_warps=1, chunks=3), "exp_scan_kernel"):
        return sequence(backend)


def record(backend: str, values: torch.Tensor) -> Tensors:
    """Observations pushed into a record around its end, and a read between them."""
    kept = tritonsyn.RecordTensor(1.0, 3.0, torch.zeros_like(values[..., 0]), backend=backend)
    leaf = values.clone().requires_grad_()
    for column in (*leaf.unbind(-1), *leaf.square().unbind(-1)):
        kept.push(column)
    value = kept.select(torch.full_like(values[..., 0], 0.5), "linear")
    return [value.detach(), *torch.autograd.grad(value.square().sum(), leaf)]


def layer(
    backend: str, kind: str, spikes: torch.Tensor, delay: float, strategy: str, masked: bool = False
) -> Tensors:
    """A sequence and a step through the layer, with gradients to all that the strategy allows."""
    torch.manual_seed(0)
    cls, physics = KINDS[kind]
    places = torch.arange(11 * spikes.shape[2], device=spikes.device).view(11, -1)
    with tritonsyn.use_backend(backend):
        module = tritonsyn.DelayedLinear(
            spikes.shape[2], 11, 1.0, delay=delay, batch_size=spikes.shape[1], bias=True,
            strategy=strategy, device=spikes.device, mask=places % 3 == 0 if masked else None,
            synapse=cls.partialconstructor(*physics),
        )  # fmt: skip
        leaves = list(module.parameters())
        x = spikes
        if strategy not in ("bits", "events"):  # which takes spikes as they are
            x = spikes.float().requires_grad_()
            leaves.append(x)
        y = module.scan(x)
        gradients = torch.autograd.grad(y.square().sum(), leaves)
        module.detach_state()
        with torch.no_grad():
            return [y.detach(), *gradients, module(spikes[0])]


def main() -> int:
    """Compares all operations; 0 if all agree."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    wrong = 0
    for name, operation in operations(device):
        pairs = zip(operation("triton"), operation("reference"), strict=True)
        errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs]
        right = all(error < 1e-4 for error in errors)
        wrong += not right
        print(f"{'agrees' if right else 'WRONG '}  {max(errors):.1e}  {name}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
