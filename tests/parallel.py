"""Delayed layers that are sharded over their outputs, and what processes do with them in tests."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from parts import jobs as jobs_on_parts
from processes import KINDS, Found, mesh, message, records, replicated, sharded, whole
from synapses import CLASSES, PHYSICS, spikes, uniform
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from tritonsyn import DelayedLinear, functional
from tritonsyn.distributed import DelayedColwiseParallel, gather_spikes, without_records

INPUTS, NEURONS, CLASSES_OF_DIGITS, LONGEST = 6, 8, 3, 4.0
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


# -- layers ---------------------------------------------------------------------------------------


def physics(kind: str = "single", learned: str | None = None, inputs: int = INPUTS) -> Any:
    """What makes synapses of a kind, with constants that are learned, one or one for each."""
    constants: dict[str, Any] = dict(PHYSICS[kind])
    if learned is not None:
        for name, value in constants.items():
            size = () if learned == "one" else (inputs,)
            constants[name] = nn.Parameter(value * (1.0 + 0.1 * uniform(*size)))
    return CLASSES[kind].partialconstructor(**constants)


def layer(inputs: int = INPUTS, synapse: Any = None, **options: Any) -> DelayedLinear:
    torch.manual_seed(0)
    inits = {"weight_init": lambda w: w.copy_(uniform(*w.shape, high=0.7))}
    how = {"synapse": synapse or physics(), "delay": LONGEST, **DOUBLE, **inits, **options}
    return DelayedLinear(inputs, NEURONS, 1.0, **how)


LAYERS: dict[str, Callable[[], DelayedLinear]] = {
    "connection": layer,
    "bias": partial(layer, bias=True),
    "input": partial(layer, delays="input", bias=True),
    "output": partial(layer, delays="output", bias=True),
    "fan_in": partial(layer, fan_in=3, bias=True),
    "fan_in, input": partial(layer, fan_in=3, delays="input"),
    "one tau": lambda: layer(synapse=physics(learned="one"), bias=True),
    "taus": lambda: layer(synapse=physics(learned="each"), delays="input"),
    "taus of outputs": lambda: layer(synapse=physics(learned="each"), delays="output"),
    "double": lambda: layer(synapse=physics("double", learned="each")),
    "alpha": lambda: layer(synapse=physics("alpha", learned="one")),
    "gemm": partial(layer, strategy="gemm"),
    "spread": partial(layer, spread=2.0, delays="output"),
    "batch first": partial(layer, batch_first=True, min_delay=1.0),
}


def learn(module: DelayedLinear, scale: float) -> Found:
    """Two updates by steps, a sequence, a tape and samples of several lengths."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.3)
    found: Found = {"y": [], "x": [], "gradients": [], "steps": []}
    for seed in range(2):
        x = spikes(12, 2, INPUTS, seed=seed).double().requires_grad_()
        optimizer.zero_grad()
        parts = x.split(3)
        turned = 1 if module.batch_first else 0
        y = [] if module.spread else [module(v) for v in parts[0]]
        with module.unrolled(3):
            y += [module(v) for v in parts[1]]
        y.extend(module(parts[2].transpose(0, turned)).transpose(0, turned))
        how = {"lengths": torch.tensor([1, 3])}
        y.extend(module.scan(parts[3].transpose(0, turned), **how).transpose(0, turned))
        (scale * torch.stack(y).square().mean()).backward()
        found["y"].append(torch.stack(y).detach())
        found["x"].append(x.grad)
        found["gradients"].append({n: whole(p.grad) for n, p in module.named_parameters()})
        optimizer.step()
        module.clamp_delays_()
        if seed:
            module.round_delays_()
        module.detach_state()
        found["steps"].append(module.delay_steps)
    found["parameters"] = {n: whole(p) for n, p in module.named_parameters()}
    found["records"] = records(module)
    return found


def sharded_layer(name: str) -> Found:
    module = LAYERS[name]()
    if distributed.get_rank():  # what the first process has counts
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
    parallelize_module(module, mesh(), DelayedColwiseParallel())
    return learn(module, 1 / distributed.get_world_size())


# -- nets -----------------------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """A spike where the current is above 1 nA, with a smooth gradient."""

    @staticmethod
    def forward(ctx: Any, current: Tensor) -> Tensor:
        ctx.save_for_backward(current)
        return (current > 1.0).to(current.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (current,) = ctx.saved_tensors
        return gradient / (1.0 + (current - 1.0).square())


spike: Callable[[Tensor], Tensor] = Spike.apply


class Net(nn.Module):
    """Neurons that excite each other, and a readout of all of them that every process has."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = layer(bias=True)
        self.recurrent = layer(NEURONS, min_delay=2.0)
        torch.manual_seed(1)
        self.readout = nn.Linear(NEURONS, CLASSES_OF_DIGITS, dtype=torch.float64)

    def forward(self, x: Tensor, way: str, gather: Callable[[Tensor], Tensor]) -> Tensor:
        drive = self.inputs(x)
        own = drive.shape[-1]
        if way == "steps":
            z, found = drive.new_zeros(x.shape[1], own), []
            for i in drive:
                z = spike(i + self.recurrent(z))
                found.append(z)
            all_spikes = torch.stack(found)
        elif way == "tape":
            z, found = drive.new_zeros(x.shape[1], own), []
            with self.recurrent.unrolled(len(x)):
                for i in drive:
                    z = spike(i + self.recurrent(z))
                    found.append(z)
            all_spikes = torch.stack(found)
        elif way == "blocks":
            z, found = drive.new_zeros(3, x.shape[1], own), []
            with self.recurrent.unrolled(len(x)):
                for i in drive.split(3):
                    z = spike(i + self.recurrent.ahead(z))
                    found.append(z)
            all_spikes = torch.cat(found)
        else:
            all_spikes = spike(self.recurrent(spike(drive)))
        return self.readout(gather(all_spikes))


WAYS = ("steps", "tape", "blocks", "layers")


def train_net(net: Net, way: str, gather: Callable[[Tensor], Tensor]) -> Found:
    """One gradient of a loss that all outputs are in."""
    x = spikes(12, 2, INPUTS).double()
    y = net(x, way, gather)
    loss = nn.functional.cross_entropy(y.mean(0), torch.tensor([0, 2]))
    loss.backward()
    return {"y": y.detach(), "gradients": {n: whole(p.grad) for n, p in net.named_parameters()}}


def parallel_net() -> Net:
    plan = {
        "inputs": DelayedColwiseParallel(),
        "recurrent": DelayedColwiseParallel(input_layouts=Shard(-1)),
    }
    return parallelize_module(Net(), mesh(), plan)


def sharded_net(way: str) -> Found:
    processes = mesh()
    return train_net(parallel_net(), way, partial(gather_spikes, mesh=processes))


class Wire(TorchDispatchMode):
    """Notes what collective operations are given: their name, dtype and size in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            given = args[1] if isinstance(args[1], Tensor) else args[0]
            given = given[0] if isinstance(given, list) else given
            self.seen.append((name, given.dtype, given.nbytes))
        return func(*args, **(kwargs or {}))


def wired() -> Found:
    """What goes over the wire when two layers see a sequence, forward and backward."""
    first, second = layer(), layer(NEURONS)
    processes = mesh()
    parallelize_module(first, processes, DelayedColwiseParallel())
    parallelize_module(second, processes, DelayedColwiseParallel(input_layouts=Shard(-1)))
    with Wire() as forward:
        y = second(spike(first(spikes(16, 3, INPUTS).double())))
    with Wire() as backward:
        y.sum().backward()
    return {"forward": forward.seen, "backward": backward.seen}


def distributed_inputs() -> Found:
    """``DTensor`` in, ``DTensor`` out; the next layer takes what this one gave."""
    processes = mesh()
    first, second = layer(), layer(NEURONS)
    for each in (first, second):
        parallelize_module(each, processes, DelayedColwiseParallel())
    x = spikes(5, 2, INPUTS).double().requires_grad_()
    z = first(DTensor.from_local(x, processes, [Replicate()]))
    own = DTensor.from_local(spike(z.to_local()), processes, z.placements)
    y = second(own)
    y.to_local().square().sum().backward()
    gradients = {"x": x.grad, "weight": whole(first.weight.grad)}
    return {"y": whole(y), "layout": str(y.placements), "gradients": gradients}


def refused() -> Found:
    """What cannot be done, in words; afterwards the layer is as it was."""
    processes = mesh()
    style = DelayedColwiseParallel(input_layouts=Shard(-1))
    module = parallelize_module(layer(NEURONS), processes, style)
    twin = copy.deepcopy(module)
    own = NEURONS // distributed.get_world_size()
    x = spikes(3, 2, own).double()
    pruned = parallelize_module(layer(bias=True), processes, DelayedColwiseParallel())
    prune.identity(pruned, "bias")
    own_weights = parallelize_module(layer(NEURONS), processes, style)
    own_weights.weight = nn.Parameter(own_weights.weight.to_local().detach())
    square = init_device_mesh("cpu", (distributed.get_world_size(), 1), mesh_dim_names=("a", "b"))
    found = {
        "values": message(lambda: module(0.5 * x)),
        "gathered values": message(lambda: gather_spikes(0.5 * x, processes)),
        "features": message(lambda: module(x[..., :-1])),
        "packed": message(lambda: module(functional.pack_spikes(x))),
        "batch sharded": message(lambda: module(DTensor.from_local(x, processes, [Shard(1)]))),
        "time sharded": message(lambda: module(DTensor.from_local(x, processes, [Shard(0)]))),
        "pending": message(lambda: module(DTensor.from_local(x, processes, [Partial()]))),
        "pruned": message(lambda: pruned(spikes(3, 2, INPUTS))),
        "own weights": message(lambda: own_weights(x)),
        "twice": message(lambda: parallelize_module(module, processes, style)),
        "axes": message(lambda: parallelize_module(layer(), square, style)),
        "odd": message(
            lambda: parallelize_module(
                DelayedLinear(2, 5, 1.0, synapse=physics(), delay=1.0), processes, style
            )
        ),
    }
    return {"messages": found, "same": bool(torch.equal(module(x), twin(x)))}


def clipped() -> Found:
    """The norm over sharded and ordinary parameters together, and the gradients clipped by it."""
    net = parallel_net()
    train_net(net, "layers", partial(gather_spikes, mesh=mesh()))
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters()], foreach=False)
    norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(net.parameters(), 0.1, norm, foreach=False)
    return {"norm": norm, "gradients": {n: whole(p.grad) for n, p in net.named_parameters()}}


# -- functional forms of distributed tensors ------------------------------------------------------


def of_scan(name: str, *constants: str) -> tuple[Any, dict[str, Tensor]]:
    """A scan, and what it is given; constants of all sizes that broadcast to the synapses."""
    sizes = ((5,), (3, 1), ())
    given = {"x": spikes(7, 3, 5).double()}
    for i, constant in enumerate((*constants, "gain")):
        given[constant] = 0.2 + 0.7 * uniform(*sizes[i % 3], seed=i)
    given |= {f"initial {i}": uniform(3, 5, seed=i) for i in range(len(constants))}
    scan = getattr(functional, name)

    def call(values: dict[str, Any]) -> tuple[Any, ...]:
        initial = [v for k, v in values.items() if k.startswith("initial")]
        past = initial[0] if len(constants) == 1 else tuple(initial)
        own = {k: v for k, v in values.items() if k != "x" and not k.startswith("initial")}
        y, final = scan(values["x"], **own, initial=past)
        return (y, *final) if len(constants) == 2 else (y, final)

    return call, given


def of_layer(rows: int, columns: int) -> tuple[Any, dict[str, Tensor]]:
    """A delayed layer with delays of connections, of inputs or of outputs."""
    given = {"x": spikes(7, 3, 5).double(), "weight": uniform(6, 5), "bias": uniform(6, seed=1)}
    given |= {"delay": uniform(rows, columns, high=3.0), "decay": 0.5 + 0.4 * uniform(5)}
    given |= {"gain": 1.0 + uniform(), "initial": uniform(4, 3, 5)}

    def call(values: dict[str, Any]) -> tuple[Any, ...]:
        initial = (values["initial"],)
        own = {k: v for k, v in values.items() if k != "initial"}
        y, (final,) = functional.delayed_linear(**own, initial=initial, max_delay=3.0)
        return y, final

    return call, given


FORMS: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "exp_scan": of_scan("exp_scan", "decay"),
    "double_exp_scan": of_scan("double_exp_scan", "decay", "rise"),
    "alpha_scan": of_scan("alpha_scan", "decay", "ratio"),
    "connection": of_layer(6, 5),
    "input": of_layer(1, 5),
    "output": of_layer(6, 1),
}
SPLITS: dict[tuple[str, str], dict[str, int]] = {
    **{(name, "batch"): {"x": 1} for name in FORMS},
    **{(name, "synapses"): {"x": 2} for name in list(FORMS)[:3]},
    ("exp_scan", "constant"): {"decay": 0},
    **{(name, "outputs"): {"weight": 0} for name in list(FORMS)[3:]},
}
"""What is sharded, and over which axis; all else is replicated."""


def weighted(results: tuple[Any, ...]) -> Any:
    """A number that every element of the results is in."""
    return sum((result * result.detach().cos()).sum() for result in results)


def formed(form: str, split: str) -> Found:
    call, given = FORMS[form]
    processes, sharded = mesh(), SPLITS[form, split]
    values = {
        name: distribute_tensor(
            value, processes, [Shard(sharded[name]) if name in sharded else Replicate()]
        ).requires_grad_()
        for name, value in given.items()
    }
    results = call(values)
    weighted(results).backward()
    found: Found = {"results": [whole(each) for each in results]}
    found["placements"] = [str(each.placements) for each in results]
    found["gradients"] = {name: whole(value.grad) for name, value in values.items()}
    kept = [value.grad.placements in (value.placements, usual(value)) for value in values.values()]
    return {**found, "kept": all(kept)}


def usual(value: DTensor) -> tuple[Any, ...]:
    """How PyTorch itself lays a gradient out: in 2.11 not in parts where these are not equal."""
    twin = value.detach().requires_grad_()
    twin.to_local().sum().backward()
    assert twin.grad is not None
    return twin.grad.placements


def not_formed() -> Found:
    """Layouts that cannot be, in words."""
    call, given = FORMS["connection"]
    processes = mesh()

    def tried(**changed: Any) -> str:
        values = {
            name: changed[name] if isinstance(changed.get(name), Tensor)
            else distribute_tensor(value, processes, [changed.get(name, Replicate())])
            for name, value in given.items()
        }  # fmt: skip
        return message(lambda: call(values))

    x, weight = given["x"], given["weight"]
    pending = DTensor.from_local(x, processes, [Partial()])
    on_all = distribute_tensor(x, processes, [Replicate()])
    return {
        "time": tried(x=Shard(0)),
        "inputs": tried(x=Shard(2)),
        "inputs of weights": tried(weight=Shard(1)),
        "pending": tried(x=pending),
        "mixed": tried(weight=weight),
        "plain x": tried(x=x),
        "module": message(lambda: layer(5)(on_all)),
        "gathered": message(lambda: gather_spikes(on_all, processes)),
    }


# -- checkpoints ----------------------------------------------------------------------------------


def constants_net() -> nn.ModuleDict:
    """Layers with constants that are learned, and one that is a tensor and is not."""
    torch.manual_seed(0)
    fixed = CLASSES["single"].partialconstructor(
        spike_charge=torch.linspace(1.0, 2.0, NEURONS), time_constant=5.0
    )
    hidden = layer(synapse=physics(learned="each"), delays="input", fan_in=3, bias=True)
    return nn.ModuleDict({"hidden": hidden, "next": layer(NEURONS, synapse=fixed)})


def update(net: nn.ModuleDict, optimizer: torch.optim.Optimizer, scale: float) -> None:
    optimizer.zero_grad()
    net["hidden"].clear()
    net["next"].clear()
    y = net["next"](spike(net["hidden"](spikes(8, 2, INPUTS).double())))
    (scale * y.square().mean()).backward()
    optimizer.step()


def parallel_constants_net() -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
    plan = {
        "hidden": DelayedColwiseParallel(),
        "next": DelayedColwiseParallel(input_layouts=Shard(-1)),
    }
    net = parallelize_module(constants_net(), mesh(), plan)
    return net, torch.optim.Adam(net.parameters(), lr=0.1)


def held(net: nn.ModuleDict) -> Found:
    """Parameters and buffers of the net, whole."""
    return {n: whole(t) for n, t in (*net.named_parameters(), *net.named_buffers())}


def save(folder: Path) -> Found:
    """Two updates and a checkpoint; then one more."""
    net, optimizer = parallel_constants_net()
    scale = 1 / distributed.get_world_size()
    for _ in range(2):
        update(net, optimizer, scale)
    state, optimizing = get_state_dict(net, optimizer)
    state = without_records(state)
    dcp.save({"net": state, "optimizer": optimizing}, checkpoint_id=folder / "checkpoint")
    full = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    found = {"saved": held(net), "full": copy.deepcopy(full)}
    update(net, optimizer, scale)
    return {**found, "next": held(net)}


def load(folder: Path) -> Found:
    """The same net, with other values until the checkpoint is loaded; then one more update."""
    net, optimizer = parallel_constants_net()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.fill_(1)
    scale = 1 / distributed.get_world_size()
    state, optimizing = get_state_dict(net, optimizer)
    state = without_records(state)
    dcp.load({"net": state, "optimizer": optimizing}, checkpoint_id=folder / "checkpoint")
    loaded: dict[str, Any] = {"model_state_dict": state, "optim_state_dict": optimizing}
    set_state_dict(net, optimizer, **loaded, options=StateDictOptions(strict=False))
    found = {"loaded": held(net)}
    update(net, optimizer, scale)
    return {**found, "next": held(net)}


def jobs(folder: Path) -> dict[Any, Callable[[], Found]]:
    """Four processes also do what wraps modules, and save; two load what four have saved."""
    made: dict[Any, Callable[[], Found]] = {
        ("layer", name): partial(sharded_layer, name) for name in LAYERS
    }
    made |= {("net", way): partial(sharded_net, way) for way in WAYS}
    made |= {"wired": wired, "inputs": distributed_inputs, "refused": refused, "clipped": clipped}
    made |= {("form", *split): partial(formed, *split) for split in SPLITS}
    made["not formed"] = not_formed
    made |= jobs_on_parts()
    if distributed.get_world_size() == 2:
        return made | {"load": partial(load, folder)}
    for kind in KINDS:
        made[("replicated", kind)] = partial(replicated, kind)
        made[("sharded", kind)] = partial(sharded, kind)
    return made | {"save": partial(save, folder)}
