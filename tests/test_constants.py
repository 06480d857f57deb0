"""Charge and time constants as numbers, tensors and learned parameters."""

import copy
from inspect import signature

import pytest
import torch
from synapses import (
    CLASSES,
    COMPONENTS,
    PHYSICS,
    both,
    every_kind,
    gradcheck,
    make,
    spikes,
    uniform,
)
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

F64 = torch.float64
SIZES = {"scalar": (), "one": (1,), "row": (1, 3), "column": (2, 1), "full": (2, 3)}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def values(kind, size, dtype=F64, device="cpu"):
    """Constants of this size, each value another, all decays slower than all rises."""
    given = {}
    for seed, (name, value) in enumerate(PHYSICS[kind].items()):
        given[name] = (value * uniform(*size, seed=seed, low=0.8, high=1.2)).to(device, dtype)
    return given


def sequence(synapse, steps=5, seed=0):
    """Outputs of some steps and of delayed reads after each."""
    device = synapse.spike.device
    outputs = []
    for t in range(steps):
        x = uniform(*synapse.batchedshape, seed=seed + t).to(device)
        sel = uniform(*synapse.batchedshape, 2, seed=seed + t, high=synapse.delay).to(device)
        sel[..., 1] = float(t % 3)  # at a step
        outputs += [synapse(x), synapse.current_at(sel)]
    return outputs


@every_kind
@sizes
@pytest.mark.parametrize("learned", [False, True])
def test_one_value_for_each_synapse(kind, size, learned, device):
    """Every synapse is one of its own with that number."""
    wrap = nn.Parameter if learned else torch.Tensor.clone
    given = {name: wrap(v) for name, v in values(kind, size, device=device).items()}
    options = {"delay": 2.0, "dtype": F64, "device": device}
    group = make(kind, (2, 3), **given, **options)
    y = sequence(group)
    for i, j in ((0, 0), (0, 2), (1, 1)):
        numbers = {name: v.expand(2, 3)[i, j].item() for name, v in given.items()}
        single = make(kind, (2, 3), **numbers, **options)
        for a, b in zip(y, sequence(single), strict=True):
            torch.testing.assert_close(a[:, i, j], b[:, i, j], rtol=1e-13, atol=1e-13)


class Program(nn.Module):
    """Steps and reads from rest, as one function of the synapse's constants."""

    def __init__(self, synapse):
        super().__init__()
        self.synapse = synapse

    def forward(self):
        self.synapse.clear()
        return tuple(sequence(self.synapse, 4))


@every_kind
@pytest.mark.parametrize("size", [(), (3,)], ids=["scalar", "full"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_gradients_of_learned_constants(kind, size, batch_size, device):
    """Against finite differences: through steps and reads, at steps and between them."""
    given = values(kind, size, device=device)
    learned = {name: nn.Parameter(v.clone()) for name, v in given.items()}
    options = {"delay": 2.0, "batch_size": batch_size, "dtype": F64, "device": device}
    program = Program(make(kind, 3, **learned, **options))
    names = [f"synapse.{name}" for name in given]

    def function(*constants):
        return functional_call(program, dict(zip(names, constants, strict=True)), ())

    inputs = [v.requires_grad_() for v in given.values()]
    assert gradcheck(function, inputs)
    # And those of the module's own parameters are the same.
    own = torch.autograd.grad(sum(y.sum() for y in program()), list(learned.values()))
    expected = torch.autograd.grad(sum(y.sum() for y in function(*inputs)), inputs)
    for a, b in zip(own, expected, strict=True):
        assert a.shape == size and torch.equal(a, b)


@every_kind
def test_gradient_of_one_constant_alone(kind, device):
    """Each by itself, the others numbers: the same as with all of them learned."""
    options = {"delay": 2.0, "dtype": F64, "device": device}
    numbers = PHYSICS[kind]
    together = {n: nn.Parameter(torch.tensor(v, dtype=F64)) for n, v in numbers.items()}
    total = sum(y.square().sum() for y in sequence(make(kind, 3, **together, **options)))
    all_grads = torch.autograd.grad(total, list(together.values()))
    for name, expected in zip(numbers, all_grads, strict=True):
        learned = nn.Parameter(torch.tensor(numbers[name], dtype=F64))
        alone = make(kind, 3, **{name: learned}, **options)
        total = sum(y.square().sum() for y in sequence(alone))
        (grad,) = torch.autograd.grad(total, learned)
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0)
        assert [n for n, _ in alone.named_parameters()] == [name]


@every_kind
@pytest.mark.parametrize("size", [(), (2,)], ids=["scalar", "full"])
def test_inputs_times_and_constants_together(kind, size, each_backend, device):
    """All gradients of one graph at once."""
    learned = {n: nn.Parameter(v) for n, v in values(kind, size, device=device).items()}
    synapse = make(kind, 2, delay=2.0, dtype=F64, device=device, **learned)
    program = Run(synapse)
    names = [f"synapse.{name}" for name in learned]

    def function(x, sel, *constants):
        return functional_call(program, dict(zip(names, constants, strict=True)), (x, sel))

    x = uniform(1, 2, seed=5).to(device).requires_grad_()
    sel = uniform(1, 2, 2, seed=6, low=0.1, high=0.9).to(device).requires_grad_()
    constants = [p.detach().clone().requires_grad_() for p in learned.values()]
    assert gradcheck(function, [x, sel, *constants])


class Run(nn.Module):
    """Three steps whose input depends on a delayed read of the steps before."""

    def __init__(self, synapse):
        super().__init__()
        self.synapse = synapse

    def forward(self, x, sel):
        self.synapse.clear()
        for t in range(3):
            y = self.synapse(x * (t + 1))
            read = self.synapse.current_at(sel + t / 2)
            x = x + 0.1 * read.sum(-1)
        return y, read, self.synapse.current


@every_kind
@pytest.mark.parametrize("how", ["float", "tensor", "parameter"])
def test_steps_and_reads_follow_the_present_value(kind, how, device):
    """A constant assigned, or changed in place, counts from then on: no value is kept."""
    options = {"delay": 2.0, "dtype": F64, "device": device}
    synapse = make(kind, 3, **options)
    sequence(synapse)
    new = {name: 1.3 * value for name, value in PHYSICS[kind].items()}
    for name, value in new.items():  # the decay before the rise, so that it stays the slower
        setattr(synapse, name, wrapped(value, how, device))
    twin = make(kind, 3, **new, **options)
    twin.load_state_dict(only_records(synapse), strict=False)
    for a, b in zip(sequence(synapse, seed=50), sequence(twin, seed=50), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def wrapped(value, how, device):
    if how == "float":
        return value
    tensor = torch.tensor(value, dtype=F64, device=device)
    return tensor if how == "tensor" else nn.Parameter(tensor)


def only_records(synapse):
    return {key: value for key, value in synapse.state_dict().items() if "." in key}


@every_kind
def test_changed_in_place(kind, each_backend, device):
    """As an optimiser does."""
    learned = {n: nn.Parameter(v) for n, v in values(kind, (3,), device=device).items()}
    synapse = make(kind, 3, delay=2.0, dtype=F64, device=device, **learned)
    with torch.no_grad():
        sequence(synapse)
        for parameter in learned.values():
            parameter.mul_(1.5)
        numbers = {name: p.detach().clone() for name, p in learned.items()}
        twin = make(kind, 3, delay=2.0, dtype=F64, device=device, **numbers)
        twin.load_state_dict(synapse.state_dict())
        for a, b in zip(sequence(synapse, seed=50), sequence(twin, seed=50), strict=True):
            assert torch.equal(a, b)


@every_kind
def test_learning_finds_the_constants(kind, device):
    """Gradient descent on the error to a target with other constants."""
    target_values = {name: 1.25 * value for name, value in PHYSICS[kind].items()}
    x = spikes(12, 1, 4, seed=1).to(device)
    target = make(kind, 4, **target_values, dtype=F64, device=device)
    with torch.no_grad():
        wanted = torch.stack([target(x_t) for x_t in x])
    learned = {n: nn.Parameter(torch.tensor(v, dtype=F64)) for n, v in PHYSICS[kind].items()}
    synapse = make(kind, 4, **learned, dtype=F64, device=device)
    optimiser = torch.optim.LBFGS(synapse.parameters(), line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        synapse.clear()
        error = sum((synapse(x_t) - y).square().sum() for x_t, y in zip(x, wanted, strict=True))
        error.backward()
        return error

    first = loss().item()
    for _ in range(5):
        optimiser.step(loss)
    assert loss().item() < 1e-6 * first
    synapse.check_constants()
    if kind == "single":
        for name, value in target_values.items():
            assert getattr(synapse, name).item() == pytest.approx(value, rel=1e-3)


@every_kind
def test_kinds_replace_each_other(kind, device):
    """Number, tensor, parameter, in any order; the module's lists follow."""
    synapse = make(kind, 3, device=device)
    for _ in range(2):
        synapse.spike_charge = torch.full((3,), 5.0, device=device)
        assert "spike_charge" in dict(synapse.named_buffers())
        assert "spike_charge" in synapse.state_dict() and not list(synapse.parameters())
        synapse.spike_charge = nn.Parameter(torch.tensor(6.0, device=device))
        assert [name for name, _ in synapse.named_parameters()] == ["spike_charge"]
        assert "spike_charge" not in dict(synapse.named_buffers())
        synapse.spike_charge = 7
        assert synapse.spike_charge == 7.0 and synapse.state_dict()["spike_charge"] == 7.0
        assert "spike_charge" not in dict(synapse.named_buffers())
        assert not list(synapse.parameters())
    y = synapse(torch.ones(1, 3, device=device))
    gain = 7.0 / 5.0 if kind == "single" else 0.0
    assert y.tolist() == [[pytest.approx(gain)] * 3]


@every_kind
def test_a_parameter_stays_the_caller_s(kind, device):
    """It is the same object, so optimisers and other modules share it; a tensor is copied."""
    shared = nn.Parameter(torch.tensor(10.0, device=device))
    physics = {**PHYSICS[kind], "spike_charge": shared}
    constructor = CLASSES[kind].partialconstructor(**physics)
    a, b = constructor(3, 1.0, 0.0, 1), constructor(4, 1.0, 2.0, 2)
    assert a.spike_charge is shared and b.spike_charge is shared
    tensor = torch.tensor(10.0, device=device)
    c = make(kind, spike_charge=tensor)
    tensor.fill_(0.0)
    assert c.spike_charge == 10.0


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_to_dtype_converts_tensors_and_keeps_numbers(kind, dtype, device):
    """Like all floating parameters; numbers keep their precision."""
    names = list(PHYSICS[kind])
    charges, fixed = torch.tensor([10.1, 20.1, 30.1]), torch.tensor([[7.3], [8.3]])
    given = {names[0]: nn.Parameter(charges.clone()), names[1]: fixed}
    synapse = make(kind, (2, 3), **given, delay=1.0, device=device)
    synapse.to(device=device, dtype=dtype)
    assert isinstance(synapse.spike_charge, nn.Parameter)
    assert torch.equal(synapse.spike_charge.detach().cpu(), charges.to(dtype))
    assert torch.equal(getattr(synapse, names[1]).cpu(), fixed.to(dtype))
    if kind == "double":
        assert synapse.tc_rise == 2.0
    y = synapse(torch.ones(1, 2, 3, device=device))
    y = y + synapse.current_at(torch.full((1, 2, 3), 0.25, device=device))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert synapse.spike_charge.grad.dtype == dtype
    assert kind != "single" or (synapse.spike_charge.grad > 0).all()


@every_kind
def test_dtypes_of_constant_and_record_may_differ(kind, device):
    """Gradients come back in the constant's dtype; a float64 constant is not rounded before."""
    charge = nn.Parameter(torch.tensor(10.0, dtype=F64, device=device))
    synapse = make(kind, spike_charge=charge, dtype=torch.float32, device=device)
    synapse(torch.ones(1, 3, device=device))
    y = synapse(torch.zeros(1, 3, device=device))
    assert y.dtype == torch.float32
    y.sum().backward()
    assert charge.grad.dtype == F64
    torch.testing.assert_close(charge.grad.float() * 10, y.detach().sum(), rtol=1e-5, atol=0)


@every_kind
def test_copies_of_learned_constants_are_their_own(kind, device):
    synapse = make(kind, spike_charge=nn.Parameter(torch.tensor(10.0)), device=device)
    twin = copy.deepcopy(synapse)
    with torch.no_grad():
        synapse.spike_charge.fill_(20.0)
    assert twin.spike_charge.item() == 10.0 and isinstance(twin.spike_charge, nn.Parameter)


@both
def test_charge_scales_the_record_not_its_past(kind, device):
    """A changed charge counts for later spikes; what is recorded keeps decaying as it was."""
    synapse = make(kind, delay=2.0, dtype=F64, device=device)
    one, none = torch.ones(1, 3, device=device), torch.zeros(1, 3, device=device)
    synapse(one)
    before = [getattr(synapse, name).clone() for name in COMPONENTS[kind]]
    synapse.spike_charge = 1000.0
    synapse(none)
    taus = list(PHYSICS[kind].values())[1:]
    for name, old, tau in zip(COMPONENTS[kind], before, taus, strict=True):
        decay = torch.exp(torch.tensor(-1.0 / tau, dtype=F64)).to(device)
        torch.testing.assert_close(getattr(synapse, name), old * decay, rtol=1e-14, atol=0)


@every_kind
def test_constants_without_values(kind):
    """Those on the meta device are taken on trust."""
    synapse = make(kind, (2, 3), device="meta", **values(kind, (2, 3), device="meta"))
    assert synapse(torch.zeros(synapse.batchedshape, device="meta")).is_meta


@every_kind
def test_a_constant_with_a_graph_is_refused(kind):
    """It would be dropped, and what it is computed from would not learn."""
    raw = nn.Parameter(torch.tensor(4.0))
    message = "spike_charge requires grad but is not an nn.Parameter"
    with pytest.raises(ValueError, match=message):
        make(kind, spike_charge=nn.functional.softplus(raw))
    synapse = make(kind)
    with pytest.raises(ValueError, match=message):
        synapse.spike_charge = torch.ones(3, requires_grad=True)
    assert synapse.spike_charge == PHYSICS[kind]["spike_charge"]


class Exponential(nn.Module):
    """Keeps a constant above 0."""

    def forward(self, raw):
        return raw.exp()

    def right_inverse(self, value):
        return value.log()


@every_kind
def test_a_parametrized_constant_learns(kind):
    synapse = make(kind, spike_charge=nn.Parameter(torch.tensor(2.0)))
    parametrize.register_parametrization(synapse, "spike_charge", Exponential())
    synapse.scan(torch.ones(2, *synapse.batchedshape)).sum().backward()
    (raw,) = synapse.parameters()
    assert raw.item() == pytest.approx(0.6931, rel=1e-3) and raw.grad != 0
    synapse.spike_charge = torch.tensor(3.0)
    assert raw.item() == pytest.approx(1.0986, rel=1e-3)


@every_kind
def test_a_synapse_is_made_on_the_default_device(kind):
    with torch.device("meta"):
        synapse = make(kind)
    assert synapse.current.is_meta


@every_kind
def test_signatures_list_every_option(kind):
    """Each with its default, in inferno's order, as if the constructors named them all."""
    cls, constants = CLASSES[kind], list(PHYSICS[kind])
    options = ["delay", "spike_interp_mode", "interp_tol", "current_overbound", "spike_overbound"]
    options += ["batch_size", "inplace"]
    shown = signature(cls).parameters
    assert list(shown)[: 2 + len(constants + options)] == [
        "shape",
        "step_time",
        *constants,
        *options,
    ]
    assert list(shown)[-4:] == ["device", "dtype", "capturable", "backend"]
    assert shown["current_overbound"].default == 0.0 and shown["inplace"].default is False
    partial = signature(cls.partialconstructor).parameters
    assert list(partial) == [*constants, *options[1:5], "inplace"]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in partial.values())
    assert partial["spike_overbound"].default is False
    assert "Fixes the physics of a synapse" in cls.partialconstructor.__doc__
    with pytest.raises(TypeError, match="missing a required argument"):
        cls.partialconstructor(10.0)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        cls.partialconstructor(**PHYSICS[kind], delay=3.0)
