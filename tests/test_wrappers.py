"""Every module inside what people wrap modules in: the right values, or a refusal in words.

A twin that nothing wraps, a closed form or a single process has the values. What is refused leaves
the state as it was. ``docs/wrappers.md`` is the same as a table.
"""

import copy
import functools
import gc
import io
import math
import pickle
import warnings
import weakref
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.utils.parametrize as parametrize
from processes import (
    KINDS,
    build,
    drive,
    filled,
    of_job,
    outputs,
    records,
    stepped,
    together,
    train,
)
from synapses import PHYSICS, make, same, snapshot, uniform
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tritonsyn import DelayedLinear, SingleExponentialCurrent, functional

every_module = pytest.mark.parametrize("kind", KINDS)
with_synapses = pytest.mark.parametrize("kind", [*PHYSICS, "linear"])
equal = functools.partial(assert_close, rtol=0, atol=0)


def synapse_of(module):
    """The module that holds the records."""
    return getattr(module, "synapse", module)


def gradients(run, module, x):
    """Outputs of ``run``, and the gradients that they give the module's parameters."""
    module.zero_grad()
    y = outputs(run, x)
    y.square().sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())
    return y.detach(), found


def assert_trains_as(run, module, twin, x=None):
    """Outputs, gradients and the state afterwards are the twin's, bit for bit."""
    x = drive() if x is None else x
    equal(gradients(run, module, x), gradients(twin, twin, x))
    equal(records(module), records(twin))


def used(kind, **options):
    """A module that has a past."""
    module = build(kind, **options)
    stepped(module, drive(5, seed=9))
    return module


def through_file(value, path):
    torch.save(value, path)
    return torch.load(path, weights_only=True)


# -- gradient checkpointing -----------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
def test_checkpointing_a_module_is_refused(kind, reentrant, sequence, capturable):
    """The call that backward would make changes nothing."""
    module = build(kind, capturable=capturable)
    x = drive().requires_grad_()
    calls = [x] if sequence else x
    y = [checkpoint(module, v, use_reentrant=reentrant) for v in calls]
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="functional"):
        sum(y).sum().backward()
    assert same(snapshot(module), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("scan", "coefficients"),
    [
        (functional.exp_scan, (0.8, 2.0)),
        (functional.double_exp_scan, (0.8, 0.5, 2.0)),
        (functional.alpha_scan, (0.8, 0.2, 2.0)),
    ],
    ids=["exp_scan", "double_exp_scan", "alpha_scan"],
)
def test_checkpointing_a_scan_without_a_module(scan, coefficients, reentrant):
    def run(wrapped):
        x = drive().requires_grad_()
        constants = [torch.full((3,), value, requires_grad=True) for value in coefficients]
        y, _ = wrapped(x, *constants)
        y.square().sum().backward()
        return y.detach(), x.grad, *(constant.grad for constant in constants)

    equal(run(functools.partial(checkpoint, scan, use_reentrant=reentrant)), run(scan))


# -- several processes ----------------------------------------------------------------------------


@functools.cache
def pair():
    """What two processes found that did every job together."""
    with TemporaryDirectory() as folder:
        return together(2, "processes", folder)


@pytest.mark.slow
@every_module
@pytest.mark.parametrize(
    "job", ["replicated", "captured", "sharded"], ids=["DDP", "DDP of buffers", "FSDP2"]
)
def test_two_processes_learn_as_one_with_both_batches(job, kind):
    """Each has half of the batch, and keeps records of its own."""
    one = build(kind, batch_size=4, dtype=torch.float64)
    expected = train(one, one, drive(batch=4), scale=0.5)
    for rank, found in enumerate(of_job(pair(), (job, kind))):
        half = slice(2 * rank, 2 * rank + 2)
        assert_close(found["y"], [y[:, half] for y in expected["y"]])
        assert_close(found["gradients"], expected["gradients"])
        assert_close(found["parameters"], expected["parameters"])
        own = {name: record[:, half] for name, record in expected["records"].items()}
        assert_close(found["records"], own)


@pytest.mark.slow
@every_module
def test_two_processes_save_and_load_a_distributed_checkpoint(kind):
    expected = dict(build(kind).named_parameters())
    if kind in PHYSICS:
        expected["spike_charge"] = torch.full((3,), 7.0)
    for found in of_job(pair(), ("saved", kind)):
        equal(
            {name: found[name] for name in expected}, {n: v.detach() for n, v in expected.items()}
        )


@every_module
@pytest.mark.parametrize("learned", [False, True])
def test_a_distributed_checkpoint_of_one_process(kind, learned, tmp_path):
    """Every key is found, and the run goes on bit for bit."""

    def new():
        plain = kind not in PHYSICS or learned
        return build(kind) if plain else make(kind, delay=3.0, batch_size=2)

    module = new()
    stepped(module, drive(5, seed=9))
    dcp.save(get_model_state_dict(module), checkpoint_id=tmp_path)
    other = new()
    filled(other, 1.0)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(other, state)
    assert same(snapshot(other), snapshot(module))
    equal(stepped(other, drive())[1], stepped(module, drive())[1])


@pytest.fixture(scope="module")
def other_process():
    """What runs functions in another process."""
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.slow
@every_module
def test_a_module_goes_to_a_process_and_back(kind, other_process):
    """What comes back has gone on; what was sent is as it was."""
    module, twin = used(kind, backend="reference"), used(kind, backend="reference")
    before = snapshot(module)
    returned, y = other_process.apply(stepped, (module, drive()))
    equal(y, stepped(twin, drive())[1])
    assert same(snapshot(returned), snapshot(twin))
    assert_trains_as(returned, returned, twin)
    assert same(snapshot(module), before)


@pytest.mark.slow
@every_module
def test_shared_parameters_are_seen_by_both_processes(kind, other_process):
    module = used(kind)
    assert module.share_memory() is module
    other_process.apply(filled, (module, 2.0))
    assert all((parameter == 2.0).all() for parameter in module.parameters())


@every_module
def test_shared_memory_holds_the_same_module(kind):
    module, twin = used(kind), used(kind)
    module.share_memory()
    assert all(parameter.is_shared() for parameter in module.parameters())
    assert_trains_as(module, module, twin)


# -- averages, frameworks -------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_a_module(kind, use_buffers):
    """It averages parameters, after batches of any size, and has a state of its own."""
    module = build(kind, batch_size=1)
    expected = [1.25 * parameter.detach() for parameter in module.parameters()]
    average = AveragedModel(
        module, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=use_buffers
    )
    average.update_parameters(module)
    stepped(module, drive(batch=2))
    with torch.no_grad():
        torch._foreach_mul_(list(module.parameters()), 2.0)
    module.clear()
    stepped(module, drive(batch=3))
    before = snapshot(module)
    average.update_parameters(module)
    assert_close([parameter.detach() for parameter in average.module.parameters()], expected)
    assert not any(record.any() for record in records(average).values())
    twin = build(kind, batch_size=2)
    twin.load_state_dict(average.module.state_dict())
    equal(outputs(average, drive()), outputs(twin, drive()))
    assert same(snapshot(module), before)


@with_synapses
def test_an_average_takes_constants_that_are_tensors(kind):
    if kind == "linear":
        constants = {"spike_charge": torch.tensor([10.0, 11.0, 12.0])}
        physics = SingleExponentialCurrent.partialconstructor(*constants.values(), 5.0)
        module = DelayedLinear(3, 2, 1.0, synapse=physics, delay=3.0)
    else:
        module = make(kind, spike_charge=torch.tensor([10.0, 11.0, 12.0]))
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    average.update_parameters(module)
    synapse_of(module).spike_charge = torch.tensor([2.0, 2.0, 2.0])
    average.update_parameters(module)
    expected = torch.tensor([8.0, 8.75, 9.5])
    assert_close(synapse_of(average.module).spike_charge, expected)


def samples():
    """Five sequences, which make two batches of two and a short one."""
    return torch.utils.data.DataLoader(drive(6, batch=5).transpose(0, 1), batch_size=2)


def learner(module):
    return torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9)


def loss_of(module, batch):
    return outputs(module, batch.transpose(0, 1)).square().mean()


def epochs(module, optimizer, number):
    """Plain training, which the frameworks have to equal."""
    for _ in range(number):
        for batch in samples():
            module.clear()
            optimizer.zero_grad()
            loss_of(module, batch).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def values(module):
    return {name: value.detach() for name, value in module.named_parameters()}


@pytest.fixture
def fit():
    """A LightningModule with one of the modules, and what trains it."""
    reason = "needs the extra `interop`"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("pytorch_lightning", reason=reason)

    class Fit(lightning.LightningModule):
        def __init__(self, kind):
            super().__init__()
            self.save_hyperparameters()
            self.net = build(kind)

        def training_step(self, batch, _):
            self.net.clear()
            return loss_of(self.net, batch)

        def configure_optimizers(self):
            return learner(self)

    def trainer(last_epoch):
        return lightning.Trainer(
            accelerator="cpu", max_epochs=last_epoch, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    return Fit, trainer


@every_module
def test_lightning_trains_saves_and_resumes(kind, fit, tmp_path):
    """As a plain loop does; the last batch of an epoch is a short one."""
    cls, trainer = fit
    model, file = cls(kind), tmp_path / "model.ckpt"
    first = trainer(2)
    first.fit(model, samples())
    twin = build(kind)
    optimizer = learner(twin)
    equal(values(model.net), epochs(twin, optimizer, 2))

    first.save_checkpoint(file)
    loaded = cls.load_from_checkpoint(file)
    assert same(snapshot(loaded.net), snapshot(twin))
    assert synapse_of(loaded.net).batchsz == 1
    equal(stepped(loaded.net, drive(batch=1))[1], stepped(copy.deepcopy(twin), drive(batch=1))[1])

    resumed = cls(kind)
    trainer(4).fit(resumed, samples(), ckpt_path=file)
    equal(values(resumed.net), epochs(twin, optimizer, 2))


@every_module
def test_accelerate_trains_saves_and_loads(kind, tmp_path):
    """Into the module that went on, and into a new one of another batch size."""
    reason = "needs the extra `interop`"
    accelerate = pytest.importorskip("accelerate", reason=reason)
    accelerator = accelerate.Accelerator(cpu=True)

    def prepared():
        module = build(kind)
        return accelerator.prepare(module, learner(module), samples())

    def epoch(module, optimizer, loader):
        for batch in loader:
            module.clear()
            optimizer.zero_grad()
            accelerator.backward(loss_of(module, batch))
            optimizer.step()

    module, *others = prepared()
    epoch(module, *others)
    accelerator.save_state(tmp_path)
    state = snapshot(module)
    twin = build(kind)
    optimizer = learner(twin)
    equal(values(module), epochs(twin, optimizer, 1))

    module.clear()
    stepped(module, drive(batch=4))
    accelerator.load_state(tmp_path)
    assert same(snapshot(module), state)

    accelerator.free_memory()
    module, *others = prepared()
    accelerator.load_state(tmp_path)
    assert same(snapshot(module), state)
    epoch(module, *others)
    equal(values(module), epochs(twin, optimizer, 1))


# -- what computes parameters ---------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def doubled(kind, *names):
    """A module whose parameters of these names are twice as large."""
    module = build(kind)
    with torch.no_grad():
        for name in names:
            getattr(module, name).mul_(2)
    return module


def computed(kind):
    """Names of parameters that may be doubled."""
    if kind not in PHYSICS:
        return ["delay"] if kind == "delay" else ["weight", "delay", "bias"]
    return list(PHYSICS[kind])[:2]


@with_synapses
@pytest.mark.parametrize("index", [0, 1])
def test_a_parametrized_parameter_is_computed(kind, index):
    name = computed(kind)[index]
    module, twin = build(kind), doubled(kind, name)
    parametrize.register_parametrization(module, name, Doubled())
    y, found = gradients(module, module, drive())
    expected, wanted = gradients(twin, twin, drive())
    equal(y, expected)
    equal(found[f"parametrizations.{name}.original"], 2 * wanted[name])
    module.clear()
    twin.clear()
    with torch.no_grad():
        equal(module.scan(drive()), twin.scan(drive()))
    parametrize.remove_parametrizations(module, name)
    assert_trains_as(module, module, twin)


@every_module
def test_a_cached_parametrization(kind):
    name = computed(kind)[0]
    module, twin = build(kind), doubled(kind, name)
    parametrize.register_parametrization(module, name, Doubled())
    with parametrize.cached():
        equal(outputs(module, drive()), outputs(twin, drive()))


class Scaled(Doubled):
    """It can be undone, so that the result can be assigned."""

    def right_inverse(self, value):
        return value / 2


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (DelayedLinear.clamp_delays_, lambda delay: delay.clamp(0.0, 3.0)),
        (DelayedLinear.round_delays_, lambda delay: delay.round().clamp(0.0, 3.0)),
    ],
    ids=["clamp", "round"],
)
def test_delays_that_are_computed_are_written_where_they_come_from(method, expected):
    """Or are refused, where that is not known."""
    layer, wanted = build("linear"), expected(build("linear").delay + 1.7).detach()
    parametrize.register_parametrization(layer, "delay", Scaled())
    with torch.no_grad():
        layer.parametrizations.delay.original.add_(0.85)
    method(layer)
    assert_close(layer.delay.detach(), wanted)

    one_way, pruned = build("linear"), build("linear")
    parametrize.register_parametrization(one_way, "delay", Doubled())
    prune.identity(pruned, "delay")
    for layer, words in ((one_way, "right_inverse"), (pruned, "delay")):
        before = snapshot(layer)
        with pytest.raises(RuntimeError, match=words):
            method(layer)
        assert same(snapshot(layer), before)


@pytest.mark.parametrize("name", ["weight", "delay"])
def test_pruning_that_masks_nothing(name):
    module, twin = build("linear"), build("linear")
    prune.identity(module, name)
    for net in (module, twin):
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            parameters.get(f"{name}_orig", parameters.get(name)).mul_(0.5)
    equal(outputs(module, drive()), outputs(twin, drive()))
    equal(module.scan(drive()), twin.scan(drive()))


def test_a_scan_uses_the_pruned_weight_of_now():
    physics = SingleExponentialCurrent.partialconstructor(5.0, 5.0)
    layer = DelayedLinear(1, 1, 1.0, synapse=physics, delay=0.0, weight_init=nn.init.ones_)
    prune.identity(layer, "weight")
    with torch.no_grad():
        layer.weight_orig.fill_(3.0)
    equal(layer.scan(torch.ones(1, 1, 1)), torch.full((1, 1, 1), 3.0))


def test_pruned_connections_carry_nothing_and_learn_nothing():
    module, twin = build("linear"), build("linear")
    prune.l1_unstructured(module, "weight", amount=3)
    mask = module.weight_mask
    assert mask.sum() == 3
    with torch.no_grad():
        twin.weight.mul_(mask)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.001) for net in (module, twin)]
    for _ in range(2):
        y, found = gradients(module, module, drive())
        expected, wanted = gradients(twin, twin, drive())
        equal(y, expected)
        equal(found["weight_orig"], mask * wanted["weight"])
        assert not found["weight_orig"][mask == 0].any()
        twin.weight.grad.mul_(mask)
        for net, optimizer in zip((module, twin), optimizers, strict=True):
            optimizer.step()
            net.clear()
    equal(module.scan(drive()), twin.scan(drive()))
    prune.remove(module, "weight")
    equal(module.weight, twin.weight)


@pytest.mark.parametrize("kind", PHYSICS)
def test_pruning_a_constant_is_refused(kind):
    """Its mask would be applied by assigning a tensor with a graph."""
    module, twin = build(kind), build(kind)
    with pytest.raises(ValueError, match="parametrize"):
        prune.identity(module, "spike_charge")
    assert_trains_as(module, module, twin)


@with_synapses
@pytest.mark.parametrize("old", [False, True])
def test_weight_norm(kind, old):
    """Twice the magnitude is twice the weight: in steps and in sequences, by any name."""
    name = "weight" if kind == "linear" else "spike_charge"
    module, twin = build(kind), build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old one asks for the new one
        norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        if old and kind != "linear":
            with pytest.raises(ValueError, match="parametrize"):
                norm(module, name, dim=None)
            return
        norm(module, name, dim=None)
    assert_close(outputs(module, drive()), outputs(twin, drive()))
    parameters = dict(module.named_parameters())
    magnitude = f"{name}_g" if old else f"parametrizations.{name}.original0"
    with torch.no_grad():
        parameters[magnitude].mul_(2)
        getattr(twin, name).mul_(2)
    module.clear()
    twin.clear()
    assert_close(module.scan(drive()), twin.scan(drive()))
    y, _ = gradients(module, module, drive(seed=1))
    expected, _ = gradients(twin, twin, drive(seed=1))
    assert_close(y, expected)


# -- copies, conversions --------------------------------------------------------------------------


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


def loaded(data):
    return torch.load(io.BytesIO(data), weights_only=False)


COPIES = {
    "deepcopy": (copy.deepcopy, lambda module: module),
    "pickle": (pickle.dumps, pickle.loads),
    "torch.save": (saved, loaded),
}
"""What takes a copy, and what makes a module of it."""


@every_module
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_copy_goes_on_alone_and_can_learn(kind, how, capturable, inference):
    """Also one that was taken while inferring."""
    module, twin = used(kind, capturable=capturable), used(kind)
    take, give = COPIES[how]
    with torch.inference_mode(inference):
        taken = take(module)
    other = give(taken)
    assert_trains_as(other, other, twin)
    assert same(snapshot(module), snapshot(used(kind)))


@every_module
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_conversion_can_learn(kind, capturable, inference):
    """To another type and back, also while inferring: float64 holds every float32."""
    module, twin = used(kind, capturable=capturable), used(kind)
    with torch.inference_mode(inference):
        module = module.to(torch.float64).to(torch.float32)
    assert_trains_as(module, module, twin)


@every_module
def test_training_after_inference(kind):
    module, twin = build(kind), build(kind)
    with torch.inference_mode():
        outputs(module, drive(5, seed=9))
    with torch.no_grad():
        outputs(twin, drive(5, seed=9))
    assert_trains_as(module, module, twin)


@with_synapses
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (nn.Module.half, torch.float16),
        (nn.Module.bfloat16, torch.bfloat16),
        (nn.Module.double, torch.float64),
        (lambda module: module.type(torch.float64), torch.float64),
        (lambda module: module.type(torch.bfloat16), torch.bfloat16),
    ],
    ids=["half", "bfloat16", "double", "type float64", "type bfloat16"],
)
def test_conversions_keep_spikes_as_they_are(kind, convert, dtype):
    module, twin = convert(used(kind)), used(kind).double()
    synapse = synapse_of(module)
    assert synapse.spike.dtype == synapse.spike_.value.dtype == torch.bool
    assert {record.dtype for record in records(module).values()} == {torch.bool, dtype}
    y = outputs(module, drive().to(dtype))
    assert y.dtype == dtype
    tolerance = {torch.float16: 0.005, torch.bfloat16: 0.04, torch.float64: 1e-6}[dtype]
    assert_close(y.double(), outputs(twin, drive().double()), rtol=tolerance, atol=tolerance)
    assert torch.equal(synapse.spike, synapse_of(twin).spike)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["to", *COPIES, "state"])
def test_steps_of_half_precision_decay_however_the_module_came_about(dtype, how):
    """A time constant of 300 steps: rounded at each step, the current would never decay."""
    charge, tau, steps = 300.0, 300.0, 300
    new = functools.partial(
        SingleExponentialCurrent, 1, 1.0, spike_charge=charge, time_constant=tau, dtype=dtype
    )
    module = new().float().to(dtype) if how == "to" else new()
    x = torch.zeros(steps + 1, 1, 1, dtype=dtype)
    x[0] = 1.0
    for t, v in enumerate(x):
        y = module(v)
        if t == steps // 2 and how in COPIES:
            take, give = COPIES[how]
            module = give(take(module))
        if t == steps // 2 and how == "state":
            state = module.state_dict()
            module = new()
            module.load_state_dict(state)
    expected = torch.full((1, 1), charge / tau * math.exp(-steps / tau), dtype=dtype)
    assert_close(y, expected)


@with_synapses
def test_to_empty_makes_a_module_that_a_state_fills(kind):
    module, twin = build(kind, device="meta"), used(kind)
    module.to_empty(device="cpu")
    assert synapse_of(module).spike.dtype == torch.bool
    module.load_state_dict(twin.state_dict())
    assert_trains_as(module, module, twin)


@every_module
def test_to_empty_and_clear_is_a_module_at_rest(kind):
    module, twin = build(kind, device="meta").to_empty(device="cpu"), build(kind)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), twin.parameters(), strict=True):
            parameter.copy_(value)
    module.clear()
    assert_trains_as(module, module, twin)


GRIDS = [((2, 3), torch.channels_last), ((2, 3, 4), torch.channels_last),
         ((2, 3, 4), torch.channels_last_3d), ((2, 2, 3, 4), torch.channels_last_3d)]  # fmt: skip


@pytest.mark.parametrize("kind", PHYSICS)
@pytest.mark.parametrize(("shape", "memory_format"), GRIDS, ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_memory_formats_do_not_permute_records(
    kind, shape, memory_format, capturable, each_backend, device
):
    """Neither those of groups of pixels, which look like pictures, nor those of pictures."""
    each = torch.linspace(1.0, 1.2, shape[-1], device=device)
    options = {"delay": 2.0, "batch_size": 2, "device": device, "capturable": capturable}
    constants = {name: value * each for name, value in PHYSICS[kind].items()}
    module, twin = (make(kind, shape, **options, **constants) for _ in range(2))
    x = (uniform(4, 2, *shape) < 0.5).to(device)
    for net in (module, twin):
        net(x[0])
    module.to(memory_format=memory_format)
    assert all(record.is_contiguous() for record in records(module).values())
    for v in x[1:]:
        assert_close(module(v), twin(v), rtol=1e-6, atol=1e-6)
    times = uniform(1, *shape, high=2.0).to(device)
    assert_close(module.current_at(times), twin.current_at(times), rtol=1e-6, atol=1e-6)
    assert_close(records(module), records(twin), rtol=1e-6, atol=1e-6)


@every_module
def test_autocast_changes_nothing_about_the_state(kind):
    module, twin = build(kind), build(kind)
    with torch.autocast("cpu", torch.bfloat16):
        y = outputs(module, drive())
    assert_close(y.float(), outputs(twin, drive()), rtol=0.02, atol=0.02)
    equal(records(module), records(twin))


# -- functional calls, transforms, traces ---------------------------------------------------------


@every_module
def test_a_functional_call_uses_other_parameters(kind):
    """And keeps those of the module; the state advances, as in any call."""
    module, twin = build(kind), build(kind)
    other = {n: (1.5 * p).detach().requires_grad_() for n, p in module.named_parameters()}
    before = values(copy.deepcopy(module))
    twin.load_state_dict(other, strict=False)
    y = outputs(lambda x: torch.func.functional_call(module, other, (x,)), drive())
    y.square().sum().backward()
    expected, wanted = gradients(twin, twin, drive())
    equal(y.detach(), expected)
    equal({name: value.grad for name, value in other.items()}, wanted)
    equal(values(module), before)
    assert all(parameter.grad is None for parameter in module.parameters())
    equal(records(module), records(twin))


def called_with(module):
    """A function of the parameters: the sum of the outputs."""
    return lambda parameters, x: torch.func.functional_call(module, parameters, (x,)).sum()


TRANSFORMED = {
    "vmap": lambda module, x: torch.vmap(module)(x[None]),
    "vmap of a sequence": lambda module, x: torch.vmap(module, in_dims=1)(x),
    "grad": lambda module, x: torch.func.grad(called_with(module))(
        dict(module.named_parameters()), x
    ),
    "grad to the input": lambda module, x: torch.func.grad(lambda v: module(v).sum())(x),
    "jacrev": lambda module, x: torch.func.jacrev(module)(x),
    "jacfwd": lambda module, x: torch.func.jacfwd(module)(x),
    "per-sample gradients": lambda module, x: torch.vmap(
        torch.func.grad(called_with(module)), in_dims=(None, 1)
    )(dict(module.named_parameters()), x[:, :, None]),
}


@every_module
@pytest.mark.parametrize("how", TRANSFORMED)
def test_transforms_are_refused(kind, how):
    module = used(kind)
    before = snapshot(module)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"(?=.*vmap)(?=.*torch\.func)"):
        TRANSFORMED[how](module, drive())
    assert same(snapshot(module), before)


@every_module
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
def test_a_trace_is_refused(kind, capturable, sequence):
    """It would keep the slot of its first step for ever."""
    module = used(kind, capturable=capturable)
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="trace"):
        torch.jit.trace(module, drive() if sequence else drive()[0])
    assert same(snapshot(module), before)


@every_module
@pytest.mark.parametrize("sequence", [False, True])
def test_an_exported_program_goes_on_from_call_to_call(kind, sequence):
    module, twin = build(kind, capturable=True), build(kind)
    parts = drive().chunk(2) if sequence else drive()
    with torch.no_grad():
        program = torch.export.export(module, (parts[0],)).module()
        module.clear()
        for part in parts:
            assert_close(program(part), twin(part))


def test_modules_inside_a_compiled_net():
    """Steps and sequences, values and gradients."""

    def net(**options):
        return nn.Sequential(build("linear", **options), nn.Tanh(), make("double", 2, **options))

    compiled, eager = net(batch_size=2, capturable=True), net(batch_size=2)
    y, found = gradients(torch.compile(compiled, backend="aot_eager"), compiled, drive())
    expected, wanted = gradients(eager, eager, drive())
    assert_close(y, expected)
    assert_close(found, wanted)
    assert_close(records(compiled), records(eager))


# -- hooks ----------------------------------------------------------------------------------------


def ways(kind):
    """Every way to run a module, each of a fresh one."""
    found = {
        "step": lambda module: module(drive()[0]),
        "sequence": lambda module: module(drive()),
        "scan": lambda module: module.scan(drive()),
    }
    if kind in PHYSICS:
        found["scan_at"] = lambda module: module.scan_at(drive(), torch.ones(1, 3))[0]
        found["advance"] = lambda module: module.advance(drive())
    return found


RUNS = [(kind, way) for kind in KINDS for way in ways(kind)]
every_run = pytest.mark.parametrize(("kind", "way"), RUNS, ids="-".join)


@every_run
def test_hooks_fire_once(kind, way):
    """Those of the synapse inside a layer do not: it is no call of the user's."""
    module = build(kind)
    fired = []
    module.register_forward_pre_hook(lambda *_: fired.append("before"))
    module.register_forward_hook(lambda *_: fired.append("after"))
    module.register_full_backward_hook(lambda *_: fired.append("backward"))
    module.register_full_backward_pre_hook(lambda *_: fired.append("before backward"))
    if kind == "linear":
        module.synapse.register_forward_pre_hook(lambda *_: fired.append("synapse"))
        module.synapse.register_forward_hook(lambda *_: fired.append("synapse"))
        module.synapse.register_full_backward_hook(lambda *_: fired.append("synapse"))
    y = ways(kind)[way](module)
    if way == "advance":
        assert y is None
        assert fired == ["before", "after"]
        return
    assert fired == ["before", "after"]
    y.sum().backward()
    assert fired == ["before", "after", "before backward", "backward"]


@every_run
def test_hooks_change_what_goes_in_and_what_comes_out(kind, way):
    """An input twice as large gives currents twice as large, and a hook adds one."""
    module, twin = build(kind), build(kind)
    module.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    if way == "scan_at":
        module.register_forward_hook(lambda _, args, y: (y[0] + 1, y[1] + 1))
    elif way != "advance":
        module.register_forward_hook(lambda _, args, y: y + 1)
    run = ways(kind)[way]
    y, expected = run(module), run(twin)
    if way != "advance":
        offset = twin.bias if kind == "linear" else 0.0
        assert_close(y - 1 - offset, 2 * (expected - offset))
    for name, record in records(module).items():
        once = records(twin)[name]
        assert_close(record, once if once.dtype == torch.bool else 2 * once)


@every_module
def test_hooks_of_all_modules_see_each_call_once(kind):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        module = build(kind)
        module(drive()[0])
        module.scan(drive())
    finally:
        handle.remove()
    assert seen == [module, module]


# -- nets -----------------------------------------------------------------------------------------


def deep(batch_size=1):
    """Two layers, and synapses after them."""
    physics = SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    torch.manual_seed(0)
    return nn.Sequential(
        DelayedLinear(3, 4, 1.0, synapse=physics, delay=3.0, batch_size=batch_size),
        nn.Sigmoid(),
        DelayedLinear(4, 2, 1.0, synapse=physics, delay=3.0, batch_size=batch_size),
        make("double", 2, batch_size=batch_size),
    )


def clear(net):
    for module in net:
        if hasattr(module, "clear"):
            module.clear()


def test_a_sequence_goes_through_a_sequential_net():
    """The batch follows the input; steps give the same."""
    net = deep()
    x = drive(batch=4)
    y = net(x)
    clear(net)
    assert_close(y, torch.stack([net(v) for v in x]))
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@every_module
@pytest.mark.parametrize("sequence", [False, True])
def test_the_batch_follows_the_input_at_rest(kind, sequence):
    """Of a new module and of a cleared one: the last batch of an epoch may be short."""
    module = build(kind, batch_size=1)
    for batch in (4, 4, 3, 1, 4):
        x = drive(batch=batch, seed=batch)
        twin = build(kind, batch_size=batch)
        module.clear()
        y, expected = (
            net(x) if sequence else torch.stack([net(v) for v in x]) for net in (module, twin)
        )
        equal(y, expected)
        assert synapse_of(module).batchsz == batch
        equal(records(module), records(twin))


@every_module
@pytest.mark.parametrize("sequence", [False, True])
def test_another_batch_is_refused_while_there_is_a_past(kind, sequence):
    module = used(kind)
    before = snapshot(module)
    x = drive(batch=3)
    with pytest.raises(ValueError, match=r"clear\(\)"):
        module(x if sequence else x[0])
    assert same(snapshot(module), before)


@every_module
def test_optimizers_clip_and_step_over_all_tensors_at_once(kind):
    def learned(foreach):
        module = build(kind)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01, foreach=foreach)
        norms = []
        for i in range(3):
            module.clear()
            optimizer.zero_grad(set_to_none=bool(i % 2))
            outputs(module, drive(seed=i)).square().sum().backward()
            norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.5, foreach=foreach))
            optimizer.step()
        assert all(norm > 0.5 for norm in norms)
        return norms, values(module)

    assert_close(learned(True), learned(False))


@every_module
def test_modes_of_training_change_nothing(kind):
    module, twin = used(kind), used(kind)
    assert module.eval() is module
    equal(stepped(module, drive())[1], stepped(twin, drive())[1])
    module.train()
    assert_trains_as(module, module, twin)


@every_module
def test_parameters_that_are_frozen_for_a_while(kind):
    module, twin = build(kind), build(kind)
    assert module.requires_grad_(False) is module
    y = outputs(module, drive(seed=1))
    assert not y.requires_grad
    equal(y, stepped(twin, drive(seed=1))[1])
    x = drive(seed=2).requires_grad_()
    outputs(module, x).sum().backward()
    assert x.grad.any() and all(parameter.grad is None for parameter in module.parameters())
    module.detach_state()
    stepped(twin, drive(seed=2))
    module.requires_grad_(True)
    assert_trains_as(module, module, twin)


class Twice(nn.Module):
    """One module in two places."""

    def __init__(self, module):
        super().__init__()
        self.first = module
        self.second = module

    def forward(self, x):
        return self.first(x) + self.second(x)


@every_module
def test_a_module_in_two_places_is_one_module(kind, tmp_path):
    net, twin = Twice(build(kind)), build(kind)
    assert len(list(net.parameters())) == len(list(twin.parameters()))
    x = drive()
    equal(torch.stack([net(v) for v in x]), torch.stack([twin(v) + twin(v) for v in x]))
    state = through_file(net.state_dict(), tmp_path / "net.pt")
    other = Twice(build(kind))
    filled(other, 1.0)
    other.load_state_dict(state)
    assert other.first is other.second
    assert same(snapshot(other.first), snapshot(twin))
    net.double().to(torch.float32)
    assert same(snapshot(net.second), snapshot(twin))
    copied = copy.deepcopy(net)
    assert copied.first is copied.second and copied.first is not net.first


@every_module
def test_a_list_of_modules(kind, tmp_path):
    nets, twins = (nn.ModuleList(build(kind) for _ in range(2)) for _ in range(2))
    for number, (net, twin) in enumerate(zip(nets, twins, strict=True)):
        equal(outputs(net, drive(seed=number)), outputs(twin, drive(seed=number)))
    other = nn.ModuleList(build(kind, batch_size=5) for _ in range(2))
    other.load_state_dict(through_file(nets.state_dict(), tmp_path / "nets.pt"))
    for net, twin in zip(other, twins, strict=True):
        twin.detach_state()
        assert_trains_as(net, net, twin)


# -- states ---------------------------------------------------------------------------------------


def plain(kind, **options):
    """A module with constants that are plain numbers, where it has any."""
    options = {"delay": 3.0, "batch_size": 2, **options}
    return make(kind, **options) if kind in PHYSICS else build(kind, **options)


def constants_of(kind):
    """Constants by their keys in a state, with their numbers."""
    if kind == "linear":
        return {"synapse.spike_charge": 10.0, "synapse.time_constant": 5.0}
    return PHYSICS.get(kind, {})


CONSTANTS = [(kind, name) for kind in KINDS for name in constants_of(kind)]


@every_module
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_state_of_another_batch_size_is_taken_over(kind, batch, options, capturable):
    module = build(kind, batch_size=batch, capturable=capturable)
    stepped(module, drive(batch=batch, seed=9))
    module.load_state_dict(used(kind).state_dict(), **options)
    assert synapse_of(module).batchsz == 2
    assert_trains_as(module, module, used(kind))


@every_module
def test_every_key_of_a_state_is_found(kind):
    """As tools that walk over a state do it, name by name."""
    for module in (used(kind), plain(kind)):
        for key, value in module.state_dict().items():
            found = module
            for name in key.split("."):
                found = getattr(found, name)
            equal(torch.as_tensor(found, dtype=value.dtype), value)


@pytest.mark.parametrize(("kind", "name"), CONSTANTS)
def test_plain_numbers_are_in_the_state(kind, name):
    value = plain(kind).state_dict()[name]
    assert value.dtype == torch.float64 and value.shape == ()
    assert value == constants_of(kind)[name]


@pytest.mark.parametrize(("kind", "name"), CONSTANTS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_of_another_constant_is_refused(kind, name, nested):
    """By name and with both numbers; unless it is not strict, which keeps the module's."""
    source, number = plain(kind), constants_of(kind)[name]
    other = 1.25 * number
    setattr(synapse_of(source), name.split(".")[-1], other)
    stepped(source, drive())
    module = plain(kind)
    stepped(module, drive(seed=1))
    if nested:
        source, module, name = nn.Sequential(source), nn.Sequential(module), f"0.{name}"
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=name) as refusal:
        module.load_state_dict(source.state_dict())
    assert str(number) in str(refusal.value) and str(other) in str(refusal.value)
    assert same(snapshot(module), before)
    module.load_state_dict(source.state_dict(), strict=False)
    assert same(snapshot(module), {**snapshot(source), name: before[name]})


@every_module
@pytest.mark.parametrize("options", [{"delay": 2.0}, {"delay": 2.5}], ids=str)
def test_a_state_of_another_delay_is_refused(kind, options):
    """One of as many steps included."""
    module = plain(kind)
    stepped(module, drive(seed=1))
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="delay"):
        module.load_state_dict(plain(kind, **options).state_dict())
    assert same(snapshot(module), before)


@every_module
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_strict_load_that_fails_changes_nothing(kind, change, nested):
    source, module = used(kind), build(kind) if kind in PHYSICS else plain(kind)
    if nested:
        source, module = nn.Sequential(source), nn.Sequential(module)
    before, state = snapshot(module), source.state_dict()
    key = next(key for key in state if key.endswith("_.storage"))
    if change == "missing":
        del state[key]
    else:
        key = f"{key}s"
        state[key] = torch.zeros(())
    with pytest.raises(RuntimeError, match=key):
        module.load_state_dict(state)
    assert same(snapshot(module), before)


@with_synapses
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("times", "yesterday"),
        ("times", 3),
        ("storage", torch.zeros(4, 2, 3).to_sparse()),
        ("storage", torch.zeros(4, 2, 3, device="meta")),
        ("storage", torch.zeros(4, 2, 4)),
        ("storage", torch.zeros(())),
        ("storage", [[0.0]]),
        ("pointer", torch.tensor(4)),
        ("pointer", torch.tensor([1, 2])),
        ("pointer", torch.zeros((), dtype=torch.int64, device="meta")),
        ("pointer", "0"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_damaged_state_is_refused_by_name(kind, part, value, strict):
    module, state = used(kind), used(kind).state_dict()
    stepped(module, drive())
    before = snapshot(module)
    key = [key for key in state if key.endswith(f"current_.{part}")][-1]
    state[key] = value
    with pytest.raises(RuntimeError, match=key):
        module.load_state_dict(state, strict=strict)
    assert same(snapshot(module), before)


@every_module
def test_a_state_without_constants_loads(kind):
    """As those that were saved before the state had them."""
    module, twin = plain(kind), plain(kind)
    stepped(twin, drive())
    state = {k: v for k, v in twin.state_dict().items() if k not in constants_of(kind)}
    module.load_state_dict(state)
    assert same(snapshot(module), snapshot(twin))


@every_module
def test_loading_what_is_there_by_assignment(kind):
    """Into a module without data, and nothing is shared with the state all the same."""
    twin = used(kind)
    state = twin.state_dict()
    state["of another net"] = torch.zeros(())
    module = build(kind, device="meta")
    keys = module.load_state_dict(copy.deepcopy(state), strict=False, assign=True)
    assert keys.missing_keys == [] and keys.unexpected_keys == ["of another net"]
    assert_trains_as(module, module, twin)


# -- keywords -------------------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize(
    "call",
    [
        lambda module: module(drive()[0], bakend="triton"),
        lambda module: module(drive(), bakend="triton"),
        lambda module: module(drive()[0], torch.zeros(2, 3)),
        lambda module: module(drive()[0], None),
        lambda module: module.scan(drive(), backendd="triton"),
        lambda module: module.clear(masks=torch.tensor([True, False])),
        lambda module: module.clear(keep_adaptation=True),
    ],
    ids=["step", "sequence", "second input", "None", "scan", "clear", "clear misspelt"],
)
def test_what_nobody_knows_is_refused(kind, call):
    module = used(kind)
    before = snapshot(module)
    with pytest.raises(TypeError):
        call(module)
    assert same(snapshot(module), before)


@every_module
def test_the_keyword_of_inferno_is_ignored(kind):
    module = used(kind)
    module.clear(keep_adaptations=True)
    assert same(snapshot(module), snapshot(build(kind)))


@every_module
@pytest.mark.parametrize("capturable", [False, True])
def test_some_samples_are_cleared(kind, capturable):
    """They go on as new ones do; the others, and their gradients, as if nothing had been."""
    module = build(kind, batch_size=3, capturable=capturable)
    others, fresh = build(kind, batch_size=3), build(kind, batch_size=3)
    past, x = drive(batch=3, seed=1), drive(batch=3)
    mask = torch.tensor([True, False, True])
    weight = mask.logical_not().float()[:, None]
    before = [outputs(net, past) for net in (module, others)]
    module.clear(mask=mask)
    mine, theirs = outputs(module, x), outputs(others, x)
    anew = outputs(fresh, x)
    assert_close(mine[:, 1], theirs[:, 1])
    assert_close(mine[:, mask], anew[:, mask])
    (weight * mine + weight * before[0]).square().sum().backward()
    (weight * theirs + weight * before[1]).square().sum().backward()
    for parameter, wanted in zip(module.parameters(), others.parameters(), strict=True):
        assert_close(parameter.grad, wanted.grad)
    kept = records(others)
    for name, record in records(module).items():
        assert_close(record[:, 1], kept[name][:, 1])


@every_module
def test_a_cleared_sample_passes_no_gradient_to_its_past(kind):
    module = build(kind)
    past = drive().requires_grad_()
    outputs(module, past)
    module.clear(mask=torch.tensor([True, False]))
    outputs(module, drive(seed=1)).sum().backward()
    assert not past.grad[:, 0].any()
    assert past.grad[:, 1].any()


@every_module
@pytest.mark.parametrize(
    "mask",
    [torch.ones(3, dtype=torch.bool), torch.ones(2), torch.ones(2, 3, dtype=torch.bool), [True]],
    ids=["size", "dtype", "axes", "list"],
)
def test_a_wrong_mask_is_refused(kind, mask):
    module = used(kind)
    before = snapshot(module)
    with pytest.raises((TypeError, ValueError), match="mask"):
        module.clear(mask=mask)
    assert same(snapshot(module), before)


def test_the_current_of_the_double_synapse_cannot_be_assigned():
    """It is the difference of two states, which can."""
    synapse = used("double")
    before = snapshot(synapse)
    with pytest.raises(AttributeError, match="current"):
        synapse.current = torch.ones(2, 3)
    assert same(snapshot(synapse), before)


def test_what_nobody_holds_is_freed():
    """The tensors of a record, which no buffer lists, go with the module."""
    module = used("single")
    storage = weakref.ref(module.current_.value)
    del module
    gc.collect()
    assert storage() is None
