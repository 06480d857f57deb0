"""Modules that are sharded over processes: equal to one process, in values and gradients."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from parallel import (
    FORMS,
    INPUTS,
    LAYERS,
    NEURONS,
    SPLITS,
    WAYS,
    Net,
    constants_net,
    held,
    layer,
    learn,
    spike,
    train_net,
    update,
    weighted,
)
from parts import BATCH, BOTH, CASES, learned_by_one, new_constants, run_with, synapse
from processes import KINDS, build, drive, of_job, records, together, train
from synapses import spikes
from torch.distributed.tensor import Shard
from torch.testing import assert_close

from tritonsyn import DelayedConv1d, SingleExponentialCurrent
from tritonsyn.distributed import DelayedColwiseParallel, gather_spikes, without_records

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs" / "examples" / "many_gpus.py"
sys.path.insert(0, str(ROOT / "docs"))
import simulate_scaling  # noqa: E402

SIZES = (4, 2)
every_size = pytest.mark.parametrize("size", SIZES)


@functools.cache
def runs():
    """What each process of four, and then of two, found; the two load what the four have saved."""
    with TemporaryDirectory() as folder:
        return {size: together(size, "parallel", folder) for size in SIZES}


def found(size, job):
    return of_job(runs()[size], job)


def part(tensors, rank, size):
    """What one of so many processes has of the outputs."""
    return [tensor.chunk(size, -1)[rank] for tensor in tensors]


@pytest.mark.slow
@every_size
@pytest.mark.parametrize("name", LAYERS)
def test_a_sharded_layer_learns_as_one_process(name, size):
    expected = learn(LAYERS[name](), 1.0)
    assert all(gradient.any() for each in expected["gradients"] for gradient in each.values())
    for rank, ours in enumerate(found(size, ("layer", name))):
        assert_close(ours["y"], part(expected["y"], rank, size))
        for key in ("x", "gradients", "parameters", "records"):
            assert_close(ours[key], expected[key])
        steps = expected["steps"]
        if not name.endswith("input") and name != "taus":
            steps = [each.chunk(size)[rank] for each in steps]
        assert_close(ours["steps"], steps)


@pytest.mark.slow
@every_size
@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_net_has_the_gradients_of_one_process(way, size):
    """Single steps, a tape, blocks of the shortest delay, and one layer after the other."""
    expected = train_net(Net(), way, lambda z: z)
    assert all(gradient.any() for gradient in expected["gradients"].values())
    for ours in found(size, ("net", way)):
        assert_close(ours, expected)


@pytest.mark.slow
@every_size
def test_spikes_travel_as_bits_and_currents_never(size):
    """Forward; backward the sums of gradients come back, each to its process."""
    bits = 16 * 3 * NEURONS // size
    for ours in found(size, "wired"):
        ((name, dtype, sent),) = ours["forward"]
        assert "gather" in name and dtype == torch.int32 and sent == 4 * -(-bits // 32)
        ((name, dtype, sent),) = ours["backward"]
        assert "scatter" in name and dtype == torch.float64 and sent == 8 * 16 * 3 * NEURONS


@pytest.mark.slow
@every_size
def test_distributed_tensors_go_from_layer_to_layer(size):
    x, first = spikes(5, 2, INPUTS).double().requires_grad_(), layer()
    y = layer(NEURONS)(spike(first(x)))
    y.square().sum().backward()
    assert x.grad.any()
    for ours in found(size, "inputs"):
        assert_close(ours["y"], y.detach())
        assert ours["layout"] == "(Shard(dim=2),)"
        assert_close(ours["gradients"], {"x": x.grad, "weight": first.weight.grad})


@pytest.mark.slow
@every_size
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("values", "ValueError: x must hold spikes, 0 or 1"),
        ("gathered values", "ValueError: x must hold spikes, 0 or 1"),
        ("features", "ValueError: x has . inputs, but must have"),
        ("packed", "TypeError: x must be a tensor, but is PackedSpikes"),
        ("batch sharded", r"ValueError: x is S\(1\), but must be Replicate"),
        ("time sharded", r"ValueError: x is S\(0\), but must be Replicate"),
        ("pending", r"ValueError: x is P\(sum\), but must be Replicate"),
        ("pruned", "the parameters of a sharded module must be weight, delay, bias, but are"),
        (
            "own weights",
            "ValueError: weight of a ParallelDelayedLinear must be a DTensor .* but is",
        ),
        ("twice", "ValueError: weight is distributed already"),
        ("axes", "ValueError: mesh must have one axis, but has 2"),
        ("odd", "ValueError: out_features=5 cannot be divided by"),
    ],
)
def test_what_is_refused_in_words(case, words, size):
    for ours in found(size, "refused"):
        assert re.search(words, ours["messages"][case]), ours["messages"][case]
        assert ours["same"]


@pytest.mark.slow
@every_size
def test_gradients_are_clipped_over_sharded_and_ordinary_parameters(size):
    net = Net()
    train_net(net, "layers", lambda z: z)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    assert norm > 0.1
    expected = {name: parameter.grad for name, parameter in net.named_parameters()}
    for ours in found(size, "clipped"):
        assert_close(ours["norm"], norm)
        assert_close(ours["gradients"], expected)


@pytest.mark.slow
@every_size
@pytest.mark.parametrize(("form", "split"), SPLITS)
def test_functional_forms_take_distributed_tensors(form, split, size):
    """Parts of five synapses, three samples and six outputs are not equal, and some are empty."""
    call, given = FORMS[form]
    values = {name: value.clone().requires_grad_() for name, value in given.items()}
    results = call(values)
    weighted(results).backward()
    first = {"batch": "S(1)", "synapses": "S(2)", "constant": "S(2)", "outputs": "S(2)"}[split]
    for ours in found(size, ("form", form, split)):
        assert_close(ours["results"], [result.detach() for result in results])
        assert_close(ours["gradients"], {name: value.grad for name, value in values.items()})
        assert ours["kept"]
        assert ours["placements"][0] == f"(Shard(dim={first[2]}),)"


@pytest.mark.slow
@every_size
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("time", r"ValueError: x is S\(0\), but may only be .* the batch or the outputs"),
        ("inputs", r"ValueError: x is S\(2\), but may only be"),
        ("inputs of weights", r"ValueError: weight is S\(1\), but may only be"),
        ("pending", r"ValueError: x is P\(sum\), but may only be"),
        ("mixed", "TypeError: weight is an ordinary tensor beside a DTensor"),
        ("plain x", "TypeError: x is an ordinary tensor beside a DTensor"),
        ("module", "TypeError: x must be what this process has, but is a DTensor"),
        ("gathered", "TypeError: x must be what this process has, but is a DTensor"),
    ],
)
def test_other_layouts_are_refused_in_words(case, words, size):
    for ours in found(size, "not formed"):
        assert re.search(words, ours[case]), ours[case]


# -- modules on parts of their input --------------------------------------------------------------


def own_record(record, case, rank, size):
    """What one of so many processes has of a record ``[K, B, ...]``; of convolutions ``B L``."""
    samples = record.unflatten(1, (BATCH, -1))
    axis = 1 if case.axis == 0 else 2 + case.axis
    return samples.chunk(size, axis)[rank].flatten(1, 2)


@pytest.mark.slow
@every_size
@pytest.mark.parametrize("name", CASES)
def test_a_module_learns_on_parts_of_its_input_as_one_process(name, size):
    """Parts of a batch of 7 are not equal; synapses and delays are parted into equal ones."""
    case, expected = CASES[name], learned_by_one(CASES[name])
    assert all(gradient.any() for each in expected["gradients"] for gradient in each.values())
    for rank, ours in enumerate(found(size, ("local", name))):
        for key in ("y", "x", "gradients", "parameters"):
            assert_close(ours[key], expected[key])
        assert_close(ours["own"], [y.chunk(size, case.axis)[rank] for y in expected["own"]])
        records = {n: own_record(r, case, rank, size) for n, r in expected["records"].items()}
        assert_close(ours["records"], records)
        assert set(ours["layouts"]) == {f"(Shard(dim={case.axis}),)"}
        assert_close(ours["loaded"], 2 * [ours["held"]])


@pytest.mark.slow
@every_size
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("another kind", "TypeError: LocalParallel shards synapses, .* but is given a Linear"),
        ("record", "TypeError: LocalParallel shards synapses, .* but is given a RecordTensor"),
        ("odd", r"ValueError: shape=\(5,\) cannot be divided over S\(1\) by . processes"),
        ("no axis", r"ValueError: layout is S\(2\), but a step's input has 2 axes"),
        ("inputs", r"ValueError: layout is S\(1\), but DelayedLinear may only be sharded over its"),
        ("twice", "ValueError: LocalSingleExponentialCurrent is distributed already"),
        ("twice, in a layer", "ValueError: LocalDelayedLinear is distributed already"),
        ("parametrized", "ValueError: a parametrized ParametrizedDelay cannot be sharded"),
        ("layout", "ValueError: layout must be a Shard, but is Replicate"),
        ("pruned", "ValueError: the parameters of a sharded module must be delay, but are"),
        ("pruned layer", "ValueError: the parameters of a sharded module must be weight, delay"),
        ("mesh", "ValueError: x is on DeviceMesh.*, but the module is on"),
        ("axes", r"ValueError: x has shape \(8,\), but must have 2 axes in a step"),
        ("part", r"ValueError: x has shape \(4, 8\), but must have"),
        ("synapses", r"ValueError: x has shape \(4, 7\), but must have 8 in the axis"),
        ("few samples", "ValueError: x has a batch of 1, which in parts of 1 is not enough for"),
        ("no samples", "ValueError: x has a batch of 0, which in parts of 0 is not enough for"),
        ("own constant", r"ValueError: time_constant of .* must be a DTensor \(Shard\(dim=0\),\)"),
        ("whole constant", "ValueError: time_constant of .* must be a DTensor .* is an ordinary"),
        ("distributed constant", "ValueError: time_constant of .* must be an ordinary tensor, but"),
        ("own delays", "ValueError: delay of a LocalDelay must be a DTensor .* ordinary tensor"),
        ("exchanged", "ValueError: spike_charge of .* must be a DTensor .* is an ordinary tensor"),
        ("lengths", "TypeError: lengths must be what this process has, but is a DTensor"),
        ("pickled", "TypeError: a LocalSingleExponentialCurrent works together .* be pickled"),
        ("exported", "TypeError: net is a Local.*, of which no program can be made"),
        ("pruned before", "ValueError: the parameters of a sharded module must be delay, but are"),
        ("whole state", "RuntimeError: spike_charge of the saved state is no DTensor, but this"),
        ("state in parts", "RuntimeError: spike_charge of the saved state is a DTensor, but this"),
        ("compiled", "torch.compile does not take modules that LocalParallel has sharded"),
    ],
)
def test_what_cannot_be_done_on_parts_is_refused_in_words(case, words, size):
    for ours in found(size, "not local"):
        assert re.search(words, ours["messages"][case]), ours["messages"][case]
        assert ours["same"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_modules_are_sharded_on_one_axis_and_the_batch_on_another(name):
    """By LocalParallel, and by FSDP2 or DDP, on a mesh of two by two processes."""
    case = CASES[name]
    module, x = case.make(), spikes(6, BATCH - 1, *case.sizes).double()
    expected = []
    for part in x.chunk(2):
        y = module(part)
        expected.append(y.detach())
        y.square().sum().backward()
        module.detach_state()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for rank, ours in enumerate(found(4, ("both axes", name))):
        assert_close(ours["y"], [y.chunk(2, 1)[rank // 2] for y in expected])
        assert_close(ours["gradients"], gradients)
        if "sharded" in ours:
            assert "must be a DTensor" in ours["sharded"]


@pytest.mark.slow
@every_size
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", new_constants())
def test_constants_are_set_when_synapses_have_been_sharded(case, axis, size):
    module = synapse("double", 8, (8,))
    module.tc_decay = new_constants()[case]
    expected = run_with(module, spikes(5, 8, 8).double())
    for ours in found(size, ("set later", axis)):
        assert_close(ours[case], expected)


@pytest.mark.slow
@every_size
def test_what_was_sharded_in_inference_mode_learns(size):
    expected = run_with(synapse("double", 8, (8,)), spikes(5, 8, 8).double())
    for ours in found(size, "without graph"):
        assert_close(ours, expected)


@pytest.mark.slow
@every_size
def test_parts_of_a_model_become_no_graph(size):
    pytest.importorskip("nirtorch")
    for ours in found(size, "written"):
        assert "ValueError: delay is a DTensor, of which this process has a part" in ours["message"]


# -- checkpoints and wrappers ---------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint_of_four():
    """Parameters, constants and the state of the optimiser."""
    net = constants_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(2):
        update(net, optimizer, 1.0)
    expected = held(net)
    update(net, optimizer, 1.0)
    after = held(net)
    assert not any(torch.equal(after[n], expected[n]) for n, _ in net.named_parameters())
    for ours in found(4, "save"):
        assert_close(ours["saved"], expected)
        assert_close(ours["next"], after)
    for ours in found(2, "load"):
        assert_close(ours["loaded"], expected)
        assert_close(ours["next"], after)


@pytest.mark.slow
def test_one_process_loads_what_four_have_put_together():
    full = found(4, "save")[0]["full"]
    net = constants_net()
    net.load_state_dict(without_records(full), strict=False)
    assert_close(held(net), found(4, "save")[0]["saved"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_without_records_has_all_else(kind):
    module = build(kind)
    module(drive()[0])
    net = torch.nn.Sequential(module, torch.nn.Linear(2, 2))
    state = without_records(net.state_dict())
    assert state.keys() >= {name for name, _ in net.named_parameters()}
    dropped = net.state_dict().keys() - state.keys()
    assert {key.rpartition(".")[0] for key in dropped} == {f"0.{name}" for name in records(module)}
    other = torch.nn.Sequential(build(kind, batch_size=3), torch.nn.Linear(2, 2))
    other.load_state_dict(state, strict=False)
    assert_close(dict(other.named_parameters()), dict(net.named_parameters()))
    assert not any(record.any() for record in records(other).values())


def test_a_state_without_records_has_what_others_call_size():
    """Of a convolution it belongs to the records."""
    physics = SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    net = torch.nn.ModuleDict({"synapse": physics(3, 1.0, 0.0, 1)})
    net.register_buffer("size", torch.tensor([2]))
    net["layer"] = DelayedConv1d(2, 3, 2, 1.0, synapse=physics, delay=3.0)
    state = without_records(net.state_dict())
    assert "size" in state and "layer.size" not in state and "layer.weight" in state


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("job", ["replicated", "sharded"], ids=["DDP", "FSDP2"])
def test_four_processes_learn_as_one_with_all_batches(job, kind):
    one = build(kind, batch_size=4, dtype=torch.float64)
    expected = train(one, one, drive(batch=4), scale=0.25)
    for rank, ours in enumerate(found(4, (job, kind))):
        own = slice(rank, rank + 1)
        assert_close(ours["y"], [y[:, own] for y in expected["y"]])
        for key in ("gradients", "parameters"):
            assert_close(ours[key], expected[key])
        mine = {name: record[:, own] for name, record in expected["records"].items()}
        assert_close(ours["records"], mine)


# -- the page and its example ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [simulate_scaling.table(16384), simulate_scaling.table(2048), simulate_scaling.crossings()],
    ids=["large", "small", "crossings"],
)
def test_the_tables_of_the_page_are_simulated(lines):
    assert "\n".join(lines) in PAGE


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
@pytest.mark.parametrize("block", [1, 10])
@pytest.mark.parametrize("spike", [simulate_scaling.BIT, simulate_scaling.FLOAT])
def test_the_simulation_is_what_the_formulas_say(gpus, block, spike):
    """Bytes exactly; the time is that of a part on its way through all nodes to the last GPU."""
    machine, neurons = simulate_scaling.Machine(), 4096
    cost = simulate_scaling.step(neurons, gpus, block, spike)
    received = (gpus - 1) / gpus * neurons * simulate_scaling.BATCH * spike
    assert cost.received == pytest.approx(received)
    assert cost.compute == pytest.approx(64 * neurons**2 / gpus / machine.taps)
    far = gpus // machine.node if gpus > machine.node else 0
    latency = machine.start + far * machine.network + (gpus - 1 - far) * machine.hop
    time = latency / block + received / machine.bandwidth if gpus > 1 else 0.0
    assert cost.exchange == pytest.approx(time)


def test_the_crossing_is_where_the_exchange_takes_longer():
    gpus = simulate_scaling.crossing(16384, 1, simulate_scaling.BIT)
    before, at = (simulate_scaling.step(16384, n) for n in (gpus - 8, gpus))
    assert before.exchange < before.compute and at.exchange > at.compute


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "tensor"])
def test_the_example_learns_on_two_processes(way):
    """What it prints is the same for both ways, to its four digits."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(EXAMPLE), way]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    # When all is done PyTorch may abort the process, as it also does of a plain nn.Linear by gloo.
    aborted = "terminate called without an active exception" in run.stderr
    assert run.returncode == 0 or aborted, run.stderr
    found = re.findall(r"(\d+) updates: loss (\S+), right (\d+)%", run.stdout)
    losses = [float(loss) for _, loss, _ in found]
    assert losses == pytest.approx([0.4797, 0.0217, 0.0020, 0.0005], abs=2e-3)
    assert found[-1][2] == "100"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80


def test_what_one_process_can_refuse_is_refused():
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh, but is 'mesh'"):
        gather_spikes(torch.zeros(2, dtype=torch.bool), "mesh")
    with pytest.raises(ValueError, match=r"x has shape \(\), but must have \(\.\.\., n\)"):
        gather_spikes(torch.tensor(True), "mesh")
    with pytest.raises(ValueError, match=r"input_layouts must be Replicate\(\) or Shard\(-1\)"):
        DelayedColwiseParallel(input_layouts=Shard(0))
