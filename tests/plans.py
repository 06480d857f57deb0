"""The same calls on two twins, one of which makes no plans, and what they gave compared.

``test_plans.py`` runs it; by itself it compares what would be launched, in a process without
Triton's interpreter and without a GPU, where results are garbage.
"""

import copy
import pickle
import random
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tritonsyn
from tritonsyn.modules.synapse import ExponentialCurrent

TAUS = {
    tritonsyn.SingleExponentialCurrent: {"time_constant": 3.0},
    tritonsyn.DoubleExponentialCurrent: {"tc_decay": 5.0, "tc_rise": 2.0},
    tritonsyn.AlphaCurrent: {"time_constant": 3.0},
}
SHAPES = ((3,), (2, 4), (16,))


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def negated(x: Tensor) -> Tensor:
    """The same with a pending negation."""
    return torch.complex(x, -x).conj().imag


def misaligned(x: Tensor) -> Tensor:
    """The same in memory that begins an element later."""
    longer = x.new_empty(x.numel() + 1)
    longer[1:] = x.flatten()
    return longer[1:].view(x.shape)


INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda x: x < 0.3,
    "float": lambda x: x,
    "int": lambda x: (3 * x).long(),
    "half": lambda x: x.half(),
    "learned": lambda x: x.requires_grad_(),
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "misaligned": misaligned,
    "negated": negated,
    "parameter": torch.nn.Parameter,
    "list": Tensor.tolist,
    "wrong": lambda x: x[..., :-1],
    "complex": lambda x: x + 1j,
    "sparse": Tensor.to_sparse,
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
}
USUAL = ("bool", "float", "learned")

Run = Callable[[ExponentialCurrent, list[Tensor]], Any]
"""What is called on a twin, which has collected outputs to be differentiated."""


def step(r: random.Random) -> Run:
    kind, seed = r.choice([*USUAL, *USUAL, *INPUTS]), r.random()

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        x = INPUTS[kind](numbers(int(1e9 * seed), *synapse.batchedshape))
        y = synapse(x)
        outputs += [y, x] if kind == "learned" else [y]
        return y

    return run


def steps(r: random.Random) -> Run:
    few = [step(r) for _ in range(2)] * 3
    return lambda synapse, outputs: [run(synapse, outputs) for run in few]


def read(r: random.Random) -> Run:
    seed, depth, first = int(1e9 * r.random()), r.choice([(), (), (2,), (0,)]), r.random() < 0.2
    kind = r.choice(["float", "float", "float", *INPUTS])
    name = r.choice(["current_at", "current_at", "spike_at"])

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        batch, *shape = synapse.batchedshape
        times = (synapse.delay + 1) * numbers(seed, 1 if first else batch, *shape, *depth) - 0.5
        sel = INPUTS[kind](times)
        values = [getattr(synapse, name)(sel) for _ in range(4)]
        if name == "current_at":
            outputs += [*values, sel] if kind == "learned" else values
        return values

    return run


def scan(r: random.Random) -> Run:
    seed, length = int(1e9 * r.random()), r.choice([0, 1, 3, 6])
    kind = r.choice([*USUAL, *INPUTS])

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        values = []
        for _ in range(4):
            x = INPUTS[kind](numbers(seed, length, *synapse.batchedshape))
            values.append(synapse.scan(x))
            outputs += [values[-1], x] if kind == "learned" else []
        return values

    return run


def push(r: random.Random) -> Run:
    seed, inplace = int(1e9 * r.random()), r.random() < 0.5

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        record = synapse.component_records()[0]
        for _ in range(4):
            record.push(numbers(seed, *synapse.batchedshape), inplace=inplace)
            synapse.spike_.push(numbers(seed, *synapse.batchedshape))

    return run


def backward(r: random.Random) -> Run:
    detach = r.random() < 0.5

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        leaves = [t for t in outputs if t.is_leaf and t.requires_grad]
        total = sum((1 + i) * t.double().nansum() for i, t in enumerate(outputs) if t.grad_fn)
        outputs.clear()
        synapse.detach_state() if detach else synapse.clear()
        if isinstance(total, Tensor):
            return torch.autograd.grad(total, leaves, materialize_grads=True)

    return run


def special(r: random.Random) -> Run:
    seed, which = int(1e9 * r.random()), r.randrange(4)

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        x = numbers(seed, *synapse.batchedshape)
        if which == 0:
            return torch.func.vmap(synapse)(x.expand(2, *x.shape))
        if which == 1:
            return torch.autograd.forward_ad.dual_level().__enter__() or synapse(x)
        if which == 2:
            return torch.jit.trace(synapse, x, check_trace=False)
        y = torch.utils.checkpoint.checkpoint(synapse, x.requires_grad_(), use_reentrant=False)
        return torch.autograd.grad(y.sum(), x)

    return run


def change(r: random.Random) -> Run:
    """Of settings and state, by the names that programs would use."""
    which, number = r.randrange(15), r.choice([1.0, 2.0, 4.0])

    def run(synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
        match which:
            case 0:
                synapse.clear()
            case 1:
                synapse.clear(torch.arange(synapse.batchsz) % 2 == 0)
            case 2 | 3:
                synapse.detach_state()
            case 4 if not isinstance(synapse, tritonsyn.DoubleExponentialCurrent):
                synapse.current = numbers(int(number), *synapse.batchedshape)
            case 5:
                synapse.to(torch.float64 if number > 1 else torch.float32)
            case 6:
                synapse.to(torch.bfloat16)
            case 7:
                synapse.batchsz = int(number)
            case 8:
                synapse.dt = number / 2
            case 9:
                synapse.delay = number + 0.5
            case 10:
                synapse.spike_charge = number
            case 11:
                synapse.inplace = number > 1
            case 12:
                synapse.spike_.incr(1)
            case 13:
                synapse.load_state_dict(copy.deepcopy(synapse.state_dict()))
            case 14:
                synapse.spike_charge = torch.nn.Parameter(torch.tensor(number))

    return run


@contextmanager
def mode(r: random.Random) -> Any:
    contexts = [nullcontext, nullcontext, nullcontext, torch.no_grad, torch.inference_mode]
    with r.choice(contexts)():
        yield


RUNS = (step, steps, steps, read, read, scan, push, backward, special, change, change)


def layer_calls(r: random.Random) -> Run:
    """Steps or sequences, each from rest or not."""
    seed, kind, length = (
        int(1e9 * r.random()),
        r.choice([*3 * USUAL, *INPUTS]),
        r.choice([0, 0, 2, 6]),
    )
    rests, changes = r.random() < 0.7, r.random() < 0.2

    def run(layer: tritonsyn.DelayedLinear, outputs: list[Tensor]) -> Any:
        size = layer.synapse.batchedshape
        values = []
        for _ in range(4):
            if rests:
                layer.clear()
            x = INPUTS[kind](numbers(seed, *([length] if length else []), *size))
            values.append(layer(x))
            if changes:
                with torch.no_grad():
                    layer.weight.mul_(2.0)
        return values

    return run


def layer_change(r: random.Random) -> Run:
    which, number = r.randrange(9), r.choice([1.0, 2.0, 3.0])

    def run(layer: tritonsyn.DelayedLinear, outputs: list[Tensor]) -> Any:
        match which:
            case 0:
                layer.strategy = {1.0: "shift", 2.0: "gemm", 3.0: "auto"}[number]
            case 1:
                layer.weight = torch.nn.Parameter(layer.weight.detach() + number)
            case 2:
                layer.delay.data = layer.delay.data.clone()
            case 3:
                layer.synapse.spike_charge = number
            case 4:
                layer.max_delay = number
            case 5:
                layer.requires_grad_(number > 1)
            case 6:
                layer.to(torch.float64 if number > 2 else torch.float32)
            case 7:
                layer.batchsz = 10 * int(number) - 7
            case 8:
                with layer.unrolled(2):
                    return [layer(torch.ones(*layer.synapse.batchedshape)) for _ in range(2)]

    return run


LAYER_RUNS = (layer_calls, layer_calls, layer_calls, layer_change)


def made_layers(seed: int, **options: Any) -> tuple[tritonsyn.DelayedLinear, ...]:
    r = random.Random(seed)
    kind = r.choice([*TAUS, *3 * [tritonsyn.SingleExponentialCurrent]])
    physics = kind.partialconstructor(2.0, *TAUS[kind].values())
    options |= {"delay": r.choice([1.0, 3.0]), "batch_size": r.choice([1, 3, 20])}
    options |= {"bias": r.random() < 0.3, "strategy": r.choice(["shift", "gemm", "auto"])}
    twins = []
    for _ in range(2):
        torch.manual_seed(seed)
        twins.append(tritonsyn.DelayedLinear(5, 4, 1.0, synapse=physics, **options))
        twins[-1].requires_grad_(seed % 4 == 3)
    twins[1].synapse.planning = False
    return tuple(twins)


def synapse_of(twin: Any) -> ExponentialCurrent:
    return getattr(twin, "synapse", twin)


def made(seed: int, **options: Any) -> tuple[ExponentialCurrent, ExponentialCurrent]:
    """A synapse that makes plans, and one that does not."""
    r = random.Random(seed)
    kind, shape = r.choice(list(TAUS)), r.choice(SHAPES)
    options |= {"delay": r.choice([0.0, 3.0]), "batch_size": r.choice([1, 3]), **TAUS[kind]}
    options |= {"inplace": r.random() < 0.3, "capturable": r.random() < 0.2}
    twins = [kind(shape, 1.0, spike_charge=2.0, **options) for _ in range(2)]
    twins[1].planning = False
    return tuple(twins)


def outcome(run: Run, synapse: ExponentialCurrent, outputs: list[Tensor]) -> Any:
    """What the call returned, or its error."""
    try:
        return run(synapse, outputs)
    except Exception as error:
        while torch.autograd.forward_ad._current_level >= 0:
            torch.autograd.forward_ad.exit_dual_level()
        return type(error), str(error)


def described(value: Any, values: bool) -> Any:
    """Something that can be compared: all of a tensor but its address, with or without values."""
    if isinstance(value, list | tuple):
        return [described(each, values) for each in value]
    if not isinstance(value, Tensor):
        return value if isinstance(value, str | type | int | float) else type(value)
    held = [] if not values or value.is_meta else value.detach().double().nan_to_num(7e77).tolist()
    return [
        value.dtype,
        value.shape,
        value.requires_grad,
        value.is_inference(),
        value.stride(),
        held,
    ]


def state(synapse: ExponentialCurrent, values: bool) -> Any:
    parts = {name: described(part, values) for name, part in synapse.state_dict().items()}
    rest = [record.at_rest for record in synapse._records()] if values else []
    graph = [record.storage.requires_grad for record in synapse._records()]
    return parts, [record.pointer for record in synapse._records()], rest, graph


def compare(
    seed: int,
    length: int = 25,
    values: bool = True,
    launched: Any = None,
    make: Any = made,
    runs: Any = RUNS,
    **options: Any,
) -> int:
    """Runs a program on twins; returns how many plans it made."""
    r, twins, outputs, count = random.Random(seed), make(seed, **options), ([], []), 0
    for _ in range(length):
        run, context, copies = r.choice(runs)(r), r.randrange(1 << 30), r.random()
        if copies < 0.05:
            way = copy.deepcopy if copies < 0.02 else lambda twin: pickle.loads(pickle.dumps(twin))
            twins = tuple(way(twin) for twin in twins)
            assert not synapse_of(twins[0])._plans
        found = []
        for twin, collected in zip(twins, outputs, strict=True):
            with mode(random.Random(context)):
                result = described(outcome(run, twin, collected), values)
            own = synapse_of(twin)
            found.append((result, state(own, values), launched(twin) if launched else None))
        assert found[0] == found[1], f"seed {seed}: {run.__qualname__}: {found[0]} != {found[1]}"
        one, other = map(synapse_of, twins)
        assert not any(other._plans.values())
        count += sum(
            plan is not None for plan in (*one._plans.values(), *one.spike_._plans.values())
        )
    return count


def compare_layers(seed: int, length: int = 12, **how: Any) -> int:
    """The same of layers."""
    return compare(seed, length, make=made_layers, runs=LAYER_RUNS, backend="triton", **how)


def launches_are_equal(null_driver: Any) -> None:
    """Of twins, whatever they are asked for."""

    def launched(twin: Any) -> Any:
        """What was launched since: kernels, grids, numbers, and of tensors what they are."""
        records = synapse_of(twin).named_children()
        parts = {t.data_ptr(): name for name, r in records for t in r._parts().values()}
        parts |= {p.data_ptr(): name for name, p in twin.named_parameters()}

        def told(a: Any) -> Any:
            if not isinstance(a, Tensor):
                return a
            place = a.data_ptr() - a.untyped_storage().data_ptr()
            return a.dtype, parts.get(a.data_ptr()), place, a.data_ptr() % 16

        made = [(*launch, [*map(told, given)]) for *launch, given in null_driver.launches]
        null_driver.launches.clear()
        return made

    for seed in range(12):
        compare(seed, values=False, launched=launched, backend="triton")
    for seed in range(6):
        compare_layers(seed, values=False, launched=launched)


def hooks_are_called(null_driver: Any) -> None:
    """Those of Triton, which a plan does not call where there are none."""
    synapse, x, seen = made(0, backend="triton")[0], torch.zeros(1, 2, 4), []
    run = [synapse(x) for _ in range(4)] and null_driver.launches[-1]
    knobs.runtime.launch_enter_hook.add(seen.append)
    synapse(x)
    knobs.runtime.launch_enter_hook.remove(seen.append)
    synapse(x)
    assert len(seen) == 1 and seen[0].get()["name"] == run[0][0]
    assert len(null_driver.launches) == 6 and synapse._plans


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
    import null_driver

    with null_driver.null_driver():
        for check in (launches_are_equal, hooks_are_called):
            null_driver.launches = []
            check(null_driver)


if __name__ == "__main__":
    from triton import knobs

    main()
