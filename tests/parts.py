"""Modules of which each process runs its part of the input, and what the tests do with them."""

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from processes import Found, full, mesh, message, records, whole
from synapses import CLASSES, PHYSICS, spikes, uniform
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune

from tritonsyn import Delay, DelayedConv1d, DelayedLinear
from tritonsyn.distributed import LocalParallel, without_records
from tritonsyn.export import ExplicitState

BATCH = 7
DOUBLE: dict[str, Any] = {"dtype": torch.float64, "delay": 4.0}


def constants(kind: str, *sizes: tuple[int, ...], learned: bool = True) -> dict[str, Any]:
    """Tensors of these sizes for the constants of a kind, in turn; without sizes numbers."""
    made: dict[str, Any] = dict(PHYSICS[kind])
    for i, (name, value) in enumerate(PHYSICS[kind].items()):
        if sizes:
            tensor = value * (1.0 + 0.1 * uniform(*sizes[i % len(sizes)], seed=i))
            made[name] = nn.Parameter(tensor) if learned else tensor
    return made


def synapse(kind: str, shape: Any, *sizes: tuple[int, ...], **options: Any) -> Any:
    learned = constants(kind, *sizes, learned=options.pop("learned", True))
    return CLASSES[kind](shape, 1.0, **learned, **DOUBLE, **options)


def delay(shape: Any, **options: Any) -> Delay:
    torch.manual_seed(0)
    return Delay(shape, 1.0, **DOUBLE, **options)


def layer(kind: Any, *sizes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    physics = CLASSES["double"].partialconstructor(**constants("double", (1,)))
    return kind(*sizes, 1.0, synapse=physics, bias=True, **DOUBLE, **options)


class Case(NamedTuple):
    """A module, the axis of a step's input that is sharded, and the sizes after the batch."""

    make: Callable[[], Any]
    axis: int
    sizes: tuple[int, ...]


ONE, MANY, FEW, GRID = (1,), (8,), (3, 1), (3, 8)
CASES = {
    "single": Case(lambda: synapse("single", 8, MANY), 1, MANY),
    "double": Case(lambda: synapse("double", 8, MANY, ONE), 1, MANY),
    "alpha": Case(lambda: synapse("alpha", 8, ONE), 1, MANY),
    "numbers": Case(lambda: synapse("single", 8, batch_first=True), 1, MANY),
    "fixed": Case(lambda: synapse("double", 8, MANY, ONE, learned=False), 1, MANY),
    "last axis": Case(lambda: synapse("double", GRID, MANY, FEW, GRID), 2, GRID),
    "first axis": Case(lambda: synapse("single", (8, 3), (3,), (8, 1)), 1, (8, 3)),
    "batch": Case(lambda: synapse("double", 8, MANY, ONE), 0, MANY),
    "batch, fixed": Case(lambda: synapse("double", 8, MANY, ONE, learned=False), 0, MANY),
    "batch before time": Case(lambda: synapse("single", 8, MANY, batch_first=True), 0, MANY),
    "delay": Case(lambda: delay(8, min_delay=1.0), 1, MANY),
    "delays of rows": Case(lambda: delay(GRID, delay_shape=FEW), 2, GRID),
    "gaussian": Case(lambda: delay(8, interp="gaussian", sigma=1.5), 1, MANY),
    "batch of a delay": Case(lambda: delay(8), 0, MANY),
    "layer": Case(lambda: layer(DelayedLinear, 8, 5), 0, MANY),
    "shared": Case(lambda: layer(DelayedLinear, 8, 5, delays="input", batch_first=True), 0, MANY),
    "masked": Case(lambda: layer(DelayedLinear, 8, 5, fan_in=3), 0, MANY),
    "convolution": Case(lambda: layer(DelayedConv1d, 2, 3, 2), 0, (2, 8)),
}
BOTH = ("double", "last axis", "delay", "batch", "layer")
"""Those on two axes of a mesh, of which FSDP2 has one, or DDP where parameters are whole."""
Place = Callable[[Tensor, int], Any]
"""Where an input is kept that has its batch, and so the axis that is sharded, so much later."""


def learn(case: Case, module: Any, place: Place, local: Place) -> Found:
    """Two updates by steps, a sequence, a tape and reads; then steps of the part alone."""
    optimizer = torch.optim.Adam([{"params": [*module.parameters()]}], lr=0.1)
    first = module.batch_first
    found: Found = {"y": [], "x": [], "gradients": []}
    for seed in range(2):
        x = spikes(9, BATCH, *case.sizes, seed=seed).double().requires_grad_()
        optimizer.zero_grad()
        later = 0 if first and case.axis == 0 else 1
        middle = x[3:6].transpose(0, 1) if first else x[3:6]
        y = [module(place(v, 0)) for v in x[:3]]
        sequence = module(place(middle, later))
        y += (sequence.transpose(0, 1) if first else sequence).unbind(0)
        for v in on_a_tape(module, [place(v, 0) for v in x[6:]]):
            y += v if isinstance(v, tuple) else [v]
        found["layouts"] = [str(v.placements) for v in y if isinstance(v, DTensor)]
        reader = getattr(module, "synapse", module)
        read = reader.current_at(1.5) if hasattr(reader, "current_at") else x.new_zeros(())
        y = torch.stack([full(v) for v in y])
        (y.square().mean() + read.square().sum()).backward()
        found["y"].append(y.detach())
        found["x"].append(x.grad)
        found["gradients"].append({n: whole(p.grad) for n, p in module.named_parameters()})
        optimizer.step()
        if hasattr(module, "clamp_delays_"):
            module.clamp_delays_()
        module.detach_state()
    with torch.no_grad():  # this process' part goes in and out as it is
        x = spikes(2, BATCH, *case.sizes, seed=2).double()
        found["own"] = [module(local(v, 0)) for v in x]
    found["parameters"] = {n: whole(p) for n, p in module.named_parameters()}
    found["records"] = records(module)
    if hasattr(module, "check_constants"):
        module.check_constants()
    return found


def on_a_tape(module: Any, x: Sequence[Any]) -> list[Any]:
    """Steps within ``unrolled``, of synapses with what they read; none of what has no tape."""
    if isinstance(module, Delay | DelayedConv1d):
        return []
    with module.unrolled(len(x)) if hasattr(module, "synapse") else module.unrolled(len(x), 1.5):
        return [module(v) for v in x]


def learned_by_one(case: Case) -> Found:
    """The same by one process that has all."""
    return learn(case, case.make(), lambda x, later: x, lambda x, later: x)


def learned_by_all(name: str) -> Found:
    case, processes = CASES[name], mesh()
    module = case.make()
    if distributed.get_rank():  # what the first process has counts
        with torch.no_grad():
            for tensor in constants_of(module).values():
                tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1.0)
        str(module)  # which finds out what a mask connects, and keeps that
    style = LocalParallel(Shard(case.axis if case.axis != 1 else -len(case.sizes)))
    parallelize_module(module, processes, style)
    turn = [0]

    def place(x: Tensor, later: int) -> DTensor:
        """Now as all have it, now in the parts that are wanted."""
        turn[0] += 1
        on_all = DTensor.from_local(x, processes, [Replicate()])
        return on_all.redistribute(placements=[Shard(case.axis + later)]) if turn[0] % 2 else on_all

    def local(x: Tensor, later: int) -> Tensor:
        return x.chunk(processes.size(), case.axis + later)[processes.get_local_rank()]

    found = learn(case, module, place, local)
    found["held"], found["loaded"] = held(module), []
    for put_together in (False, True):
        twin = parallelize_module(case.make(), processes, style)
        with torch.no_grad():
            for tensor in constants_of(twin).values():
                tensor.fill_(1.0)
        how = StateDictOptions(full_state_dict=put_together, strict=False)
        state = without_records(get_model_state_dict(module, options=how))
        set_model_state_dict(twin, state, options=how)
        found["loaded"].append(held(twin))
    return found


def constants_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, the mask, and constants that are tensors and are not learned."""
    known = (*getattr(module, "_constants", ()), "mask")
    buffers = {name: each for name, each in module.named_buffers() if name in known}
    return {**dict(module.named_parameters()), **buffers}


def held(module: nn.Module) -> Found:
    return {name: whole(tensor) for name, tensor in constants_of(module).items()}


def both_axes(name: str) -> Found:
    """Parts by LocalParallel on one axis of a mesh, and parts of the batch on the other."""
    processes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    outer, inner = processes["outer"], processes["inner"]
    case = CASES[name]
    module, rank = case.make(), outer.get_local_rank()
    parallelize_module(module, inner, LocalParallel(Shard(case.axis)))
    if case.axis:
        fully_shard(module, mesh=outer)
        net = fully_shard(nn.Sequential(module), mesh=outer)  # whose parts are sharded again
    else:
        net = DistributedDataParallel(module, process_group=outer.get_group())
    x = spikes(6, BATCH - 1, *case.sizes).double().chunk(2, 1)[rank]
    found: Found = {"y": []}
    for part in x.chunk(2):
        y = net(DTensor.from_local(part, inner, [Replicate()])).full_tensor()
        found["y"].append(y.detach())
        (2.0 * y.square().sum()).backward()  # of which both take the mean
        module.detach_state()
    found["gradients"] = {n: whole(p.grad) for n, p in module.named_parameters()}
    if case.axis and hasattr(module, "current_at"):
        with torch.no_grad():
            net(DTensor.from_local(x, inner, [Replicate()]))
        found["sharded"] = message(lambda: module.current_at(1.5))
    return found


def new_constants() -> dict[str, Any]:
    """For a synapse: a number, one that is learned, and many."""
    one, many = torch.tensor([7.0]).double(), 6.0 + uniform(8)
    return {"number": 9.0, "one": nn.Parameter(one), "many": nn.Parameter(many), "fixed": many}


def run_with(module: Any, x: Any) -> Found:
    y = full(module(x))
    y.square().sum().backward()
    gradients = {n: whole(p.grad) for n, p in module.named_parameters()}
    module.check_constants()
    return {"y": y.detach(), "gradients": gradients}


def set_later(axis: int) -> Found:
    """Constants that are set when the synapses have been sharded."""
    processes, x, found = mesh(), spikes(5, 8, 8).double(), {}
    for case, value in new_constants().items():
        module = parallelize_module(
            synapse("double", 8, MANY), processes, LocalParallel(Shard(axis))
        )
        if axis and case in ("many", "fixed"):
            made = distribute_tensor(value.detach(), processes, [Shard(0)])
            value = nn.Parameter(made) if case == "many" else made
        module.tc_decay = value
        found[case] = run_with(module, DTensor.from_local(x, processes, [Replicate()]))
    return found


def without_graph() -> Found:
    """Sharded in inference mode, which training has to come out of."""
    processes, x = mesh(), spikes(5, 8, 8).double()
    with torch.inference_mode():
        module = parallelize_module(synapse("double", 8, MANY), processes, LocalParallel(Shard(1)))
        module(DTensor.from_local(x, processes, [Replicate()]))
    module.clear()
    return run_with(module, DTensor.from_local(x, processes, [Replicate()]))


def written() -> Found:
    """What does not become a graph of NIR."""
    from tritonsyn.nir import to_nir

    module = parallelize_module(delay(8), mesh(), LocalParallel(Shard(1)))
    return {"message": message(lambda: to_nir(module, torch.zeros(1, 8).double()))}


def refused() -> Found:
    """What cannot be done, in words; afterwards the modules are as they were."""
    processes = mesh()

    def style(axis: int) -> LocalParallel:
        return LocalParallel(Shard(axis))

    def tried(module: Any, *axes: int) -> str:
        for axis in axes[:-1]:
            parallelize_module(module, processes, style(axis))
        return message(lambda: parallelize_module(module, processes, style(axes[-1])))

    module = parallelize_module(synapse("single", 8, MANY), processes, style(1))
    pruned = parallelize_module(delay(8), processes, style(0))
    prune.identity(pruned, "delay")
    pruned_layer = parallelize_module(layer(DelayedLinear, 8, 5), processes, style(0))
    prune.identity(pruned_layer, "bias")
    pruned_before = delay(8)
    prune.identity(pruned_before, "delay")
    batched = parallelize_module(synapse("single", 8, MANY), processes, style(0))
    own_delays = parallelize_module(delay(8), processes, style(1))
    own_delays.delay = nn.Parameter(own_delays.delay.to_local().detach())
    exchanged = parallelize_module(synapse("single", 8, MANY), processes, style(1))
    exchanged.spike_charge = nn.Parameter(uniform(8))  # as FSDP2 does, so it is refused in use
    squashed = delay(8)
    parametrize.register_parametrization(squashed, "delay", nn.ReLU())
    x = spikes(4, 8).double()
    other = init_device_mesh("cpu", (processes.size(),), mesh_dim_names=("other",))
    elsewhere = DTensor.from_local(x, other, [Replicate()])
    on_all = DTensor.from_local(x, processes, [Replicate()])
    own_size = 8 // processes.size()
    of_synapses = distribute_tensor(1.0 + uniform(8), processes, [Shard(0)])
    lengths = distribute_tensor(torch.tensor([1, 0, 1, 1]), processes, [Shard(0)])
    twin = copy.deepcopy(module)
    found = {
        "another kind": tried(nn.Linear(8, 8), 0),
        "record": tried(module.spike_, 0),
        "odd": tried(synapse("single", 5), 1),
        "no axis": tried(synapse("single", 8), 2),
        "inputs": tried(layer(DelayedLinear, 8, 5), 1),
        "twice": tried(synapse("single", 8), 1, 1),
        "twice, in a layer": tried(layer(DelayedLinear, 8, 5), 0, 0),
        "parametrized": tried(squashed, 0),
        "layout": message(lambda: LocalParallel(Replicate())),
        "pruned": message(lambda: pruned(x)),
        "pruned layer": message(lambda: pruned_layer(x)),
        "mesh": message(lambda: module(elsewhere)),
        "axes": message(lambda: module(on_all[0])),
        "part": message(lambda: module(x)),
        "synapses": message(lambda: module(on_all[:, :7])),
        "few samples": message(lambda: batched(on_all[:1])),
        "no samples": message(lambda: batched(on_all[:0])),
        "own constant": message(lambda: setattr(module, "time_constant", uniform(own_size))),
        "whole constant": message(lambda: setattr(module, "time_constant", uniform(8))),
        "distributed constant": message(lambda: setattr(batched, "time_constant", of_synapses)),
        "own delays": message(lambda: own_delays(on_all)),
        "exchanged": message(lambda: exchanged(on_all)),
        "lengths": message(lambda: batched.scan(on_all.unsqueeze(0), lengths=lengths)),
        "pickled": message(lambda: pickle.dumps(module)),
        "exported": message(lambda: ExplicitState(module)),
        "pruned before": tried(pruned_before, 0),
        "whole state": message(
            lambda: module.load_state_dict(synapse("single", 8, MANY).state_dict())
        ),
        "state in parts": message(
            lambda: synapse("single", 8, MANY).load_state_dict(module.state_dict())
        ),
        "compiled": message(lambda: torch.compile(module, backend="eager")(x)),
    }
    own = x.chunk(processes.size(), 1)[processes.get_local_rank()]
    return {"messages": found, "same": bool(torch.equal(module(own), twin(own)))}


def jobs() -> dict[Any, Callable[[], Found]]:
    made: dict[Any, Callable[[], Found]] = {
        ("local", name): partial(learned_by_all, name) for name in CASES
    }
    made |= {("set later", axis): partial(set_later, axis) for axis in (0, 1)}
    made |= {"without graph": without_graph, "written": written, "not local": refused}
    if distributed.get_world_size() == 4:
        made |= {("both axes", name): partial(both_axes, name) for name in BOTH}
    return made
