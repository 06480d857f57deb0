"""Masked layers against dense ones whose other weights are zero: values, gradients, state."""

import copy
import pickle

import pytest
import torch
import torch.nn.utils.prune
from synapses import CLASSES, every_kind, gradcheck, interpreted, spikes, uniform
from torch.nn.utils.parametrize import register_parametrization

from tritonsyn import DelayedLinear
from tritonsyn.ops.strategy import Work, cheapest
from tritonsyn.reference import bags as reference
from tritonsyn.values import Links

F64 = torch.float64
STEPS, BATCH, INPUTS, OUTPUTS, STEP, LONGEST = 6, 2, 5, 4, 1.3, 3.7
MASK = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()
"""With an output that reads nothing, and an input that nothing reads."""


def layer_of(kind="single", constants="number", size=(OUTPUTS, INPUTS), **options):
    values = {"single": [2.0, 5.0], "double": [2.0, 6.0, 2.0], "alpha": [2.0, 3.0]}[kind]
    if constants == "each learned":
        each = 1 + 0.1 * torch.arange(size[1], dtype=F64)
        values = [torch.nn.Parameter(value * each) for value in values]
    delays = 5.0 * uniform(*size, seed=3) - 0.5
    delays[0, :2] = torch.tensor([0.0, 2 * STEP])
    how = {"delay": LONGEST, "bias": True, "batch_size": BATCH, "dtype": F64}
    how |= {
        "weight_init": lambda t: uniform(*t.shape, seed=1, low=-1).to(t),
        "delay_init": lambda t: delays.to(t),
    }
    synapse = CLASSES[kind].partialconstructor(*values)
    return DelayedLinear(size[1], size[0], STEP, synapse=synapse, **{**how, **options})


def dense_like(layer):
    """A layer of all connections that computes the same."""
    twin = copy.deepcopy(layer)
    twin.mask = None
    assert not twin.weight[~layer.mask].any()
    return twin


def leaves(layer):
    return [*layer.parameters()]


def assert_same(a, b, inputs=(), given=()):
    """The same outputs, gradients and state of a masked layer and a dense one."""
    y, wanted = a[1], b[1]
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    found = []
    for (layer, y), more in ((a, inputs), (b, given)):
        loss = (y * uniform(*y.shape, seed=9)).sum()
        found.append(torch.autograd.grad(loss, [*leaves(layer), *more], materialize_grads=True))
    names = [name for name, _ in a[0].named_parameters()] + ["x"] * len(inputs)
    for name, grad, dense in zip(names, *found, strict=True):
        connected = name in ("weight", "delay")
        wanted = dense * a[0].mask if connected else dense
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-11)
        assert not connected or not grad[~a[0].mask].any()
    for one, other in zip(a[0].synapse.children(), b[0].synapse.children(), strict=True):
        torch.testing.assert_close(one.value, other.value, rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize(
    "strategy, constants",
    [("auto", "each learned"), *[(way, "number") for way in ("shift", "gemm", "bits", "events")]],
)
def test_equals_a_dense_layer_with_zeros(each_backend, kind, strategy, constants):
    if interpreted() and (kind, strategy) not in [("single", "shift"), ("double", "auto")]:
        pytest.skip("these see all there is to see")
    layer = layer_of(kind, constants, mask=MASK, strategy=strategy)
    twin = dense_like(layer)
    x = spikes(STEPS, BATCH, INPUTS)
    inputs = [x] * 2
    if strategy in ("auto", "shift", "gemm"):
        inputs = [x.to(F64).requires_grad_() for _ in range(2)]
    graded = [[each] if each.requires_grad else [] for each in inputs]

    def run(layer, x):
        """From rest, and on from there."""
        return torch.cat((layer.scan(x[:4]), layer.scan(x[4:])))

    pairs = [(each, run(each, x)) for each, x in zip((layer, twin), inputs, strict=True)]
    assert_same(*pairs, *graded)


@every_kind
@pytest.mark.parametrize("way", ["steps", "tape", "ahead"])
def test_steps_of_any_sort(each_backend, kind, way):
    if interpreted() and (kind != "single" or way == "steps"):
        pytest.skip("these see all there is to see")
    size = (4, 4)
    layer = layer_of(kind, "each learned", size, mask=MASK[:, :4], min_delay=STEP)
    twin = dense_like(layer)
    x = uniform(STEPS, BATCH, 4, seed=4)

    def run(layer):
        if way == "steps":
            return torch.stack([layer(row) for row in x])
        found = []
        with layer.unrolled(STEPS):
            for rows in x.split(2 if way == "ahead" else 1):
                found.append(layer.ahead(rows) if way == "ahead" else layer(rows[0])[None])
        return torch.cat(found)

    assert_same(*[(each, run(each)) for each in (layer, twin)])


@pytest.mark.parametrize("delays", ["input", "output"])
def test_shared_delays(delays):
    x = spikes(STEPS, BATCH, INPUTS)
    for strategy in ("auto", "shift"):
        how = {"delays": delays, "strategy": strategy, "delay_init": torch.nn.init.ones_}
        layer = layer_of("double", mask=MASK, **how)
        twin = dense_like(layer)
        one, other = layer.scan(x), twin.scan(x)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(layer(x[0]), twin(x[0]))
        a, b = (torch.autograd.grad(y.sum(), m.weight)[0] for y, m in ((one, layer), (other, twin)))
        torch.testing.assert_close(a, b * MASK)
        assert layer.delay_steps.shape == layer.delay.shape


def test_lines_longer_than_a_window(monkeypatch):
    """Are summed in several parts."""
    monkeypatch.setattr(reference, "_WINDOW", 5)
    layer = layer_of("double", mask=MASK, strategy="shift")
    twin = dense_like(layer)
    twin.strategy = "gemm"
    x = uniform(STEPS, BATCH, INPUTS, seed=5)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    pairs = [(m, m.scan(i)) for m, i in zip((layer, twin), inputs, strict=True)]
    assert_same(*pairs, inputs[:1], inputs[1:])


def test_gradients_against_finite_differences():
    layer = layer_of("double", mask=MASK[:3, :3], size=(3, 3), strategy="shift")
    x = uniform(3, 1, 3, seed=6).requires_grad_()

    def run(x, weight, delay):
        layer.clear()
        given = {"weight": weight, "delay": delay}
        return torch.func.functional_call(layer, given, (x,), {})

    delay = (0.3 + 3.0 * uniform(3, 3, seed=7)).requires_grad_()
    assert gradcheck(run, (x, layer.weight.detach().requires_grad_(), delay))


@pytest.mark.parametrize("strategy", ["shift", "gemm"])
def test_no_connection_at_all(strategy):
    layer = layer_of("double", mask=torch.zeros_like(MASK), strategy=strategy)
    x = uniform(STEPS, BATCH, INPUTS).requires_grad_()
    y = layer.scan(x)
    assert torch.equal(y, layer.bias.expand(STEPS, BATCH, OUTPUTS))
    assert torch.equal(layer(x[0]), layer.bias.expand(BATCH, OUTPUTS))
    found = torch.autograd.grad(y.sum(), (layer.weight, layer.delay, x), materialize_grads=True)
    assert not any(grad.any() for grad in found)


@pytest.mark.parametrize("way", ["scan", "tape"])
def test_a_spread_of_the_delays(way):
    layer = layer_of(mask=MASK[:, :4], size=(4, 4), spread=2 * STEP)
    twin = dense_like(layer)
    x = uniform(STEPS, BATCH, 4, seed=4)
    if way == "scan":
        assert_same(*[(each, each.scan(x)) for each in (layer, twin)])
        return
    found = []
    for each in (layer, twin):
        with each.unrolled(STEPS):
            found.append((each, torch.stack([each(row) for row in x])))
    assert_same(*found)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_reaches_those_that_read_it_alone(each_backend, bad):
    layer = layer_of(mask=MASK, strategy="shift")
    with torch.no_grad():
        layer.weight[~MASK] = bad  # as what another mask leaves behind
    x = torch.zeros(STEPS, BATCH, INPUTS, dtype=F64)
    x[:, :, 0] = bad
    reached = ~layer.scan(x).isfinite().all(0).all(0)
    assert torch.equal(reached, MASK[:, 0])


def test_pruned_and_parametrized():
    layer = layer_of(mask=MASK)
    x = spikes(STEPS, BATCH, INPUTS)
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 15)
    kept = layer.weight_mask.bool() & MASK
    layer.scan(x).sum().backward()
    assert torch.equal(layer.weight_orig.grad != 0, kept)
    assert 0 < kept.sum() < MASK.sum()
    torch.nn.utils.prune.remove(layer, "weight")
    twin = dense_like(layer)

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

        def right_inverse(self, x):
            return x / 2

    for each in (layer, twin):
        each.clear()
        for name in ("weight", "delay"):
            register_parametrization(each, name, Twice())
        each.round_delays_()
    one, other = layer.scan(x), twin.scan(x)
    torch.testing.assert_close(one, other)
    a, b = (
        torch.autograd.grad(y.sum(), m.parametrizations["weight"].original)[0]
        for y, m in ((one, layer), (other, twin))
    )
    torch.testing.assert_close(a, b * MASK)
    assert torch.equal(layer.delay_steps, twin.delay_steps)


def test_the_mask_may_change():
    """In place, by another one, by a saved state: what is derived from it follows."""
    x = spikes(STEPS, BATCH, INPUTS)
    layer = layer_of(mask=MASK)
    saved = copy.deepcopy(layer.state_dict())

    def check(mask):
        layer.clear()
        with torch.no_grad():
            y = layer.scan(x)
            layer.clear()
            layer.strategy = "gemm"
            twin = copy.deepcopy(layer)
            twin.mask = None
            twin.weight.mul_(mask)
            torch.testing.assert_close(y, twin.scan(x))
            layer.strategy = "auto"

    check(MASK)
    torch.nn.init.normal_(layer.weight)
    known = layer._links()
    layer.mask.copy_(MASK)  # as data parallel training does before each step
    assert layer._links() is known
    layer.mask[1, 2] = True
    check(MASK | (layer.mask & ~MASK))
    layer.mask = ~MASK
    check(~MASK)
    layer.load_state_dict(saved)
    assert torch.equal(layer.mask, MASK)
    check(MASK)
    with torch.inference_mode():
        layer.mask = MASK.clone()
        check(MASK)
        layer.mask[:] = ~MASK  # of which no version tells
        check(~MASK)
    layer.mask = None
    check(torch.ones_like(MASK))
    dense = layer_of()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mask"):
        dense.load_state_dict(saved)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "to"])
def test_copies_have_masks_of_their_own(how):
    layer, x = layer_of(mask=MASK), spikes(STEPS, BATCH, INPUTS)
    wanted = layer.scan(x)
    layer.clear()
    layer.detach_state()
    if how == "to":
        twin = copy.deepcopy(layer).float().to(F64)
        torch.testing.assert_close(twin.scan(x), wanted, rtol=1e-5, atol=1e-5)
    else:
        twin = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
        assert torch.equal(twin.scan(x), wanted)
    layer.mask.fill_(True)
    assert torch.equal(twin.mask, MASK)


def test_connections_may_be_drawn():
    physics = CLASSES["single"].partialconstructor(1.0, 5.0)
    layer = DelayedLinear(50, 40, 1.0, synapse=physics, delay=5.0, bias=True, fan_in=4)
    assert torch.equal(layer.mask.sum(1), torch.full((40,), 4))
    assert len({tuple(row.nonzero().flatten().tolist()) for row in layer.mask}) > 30
    assert torch.equal(layer.weight != 0, layer.mask)
    bound = layer.weight.abs().max()
    assert 0.45 < bound <= 0.5 and 0.4 < layer.bias.abs().max() <= 0.5
    torch.manual_seed(0)
    again = DelayedLinear(50, 40, 1.0, synapse=physics, delay=5.0, bias=True, fan_in=4)
    assert torch.equal(again.weight, layer.weight)
    assert "connections=160," in repr(layer)
    given = {"synapse": physics, "delay": 5.0, "fan_in": 4, "device": "meta"}
    assert DelayedLinear(50, 40, 1.0, **given).mask.is_meta


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask": MASK.float()}, "mask must be a bool tensor"),
        ({"mask": MASK.tolist()}, "mask must be a bool tensor"),
        ({"mask": MASK.t()}, r"mask.*\(5, 4\).*\(4, 5\)|mask.*\(4, 5\).*\(5, 4\)"),
        ({"mask": MASK, "fan_in": 2}, "mask and fan_in=2"),
        ({"fan_in": 0}, "fan_in must be a positive integer, but is 0"),
        ({"fan_in": 2.0}, "fan_in must be a positive integer, but is 2.0"),
        ({"fan_in": 6}, "fan_in must be at most in_features, 5, but is 6"),
    ],
)
def test_wrong_masks_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        layer_of(**options)


def test_a_wrong_mask_that_is_assigned_is_refused():
    layer = layer_of(mask=MASK)
    layer.mask = MASK.t().clone()
    with pytest.raises(ValueError, match="mask"):
        layer.scan(spikes(STEPS, BATCH, INPUTS))


def test_links_spread_what_they_take():
    links = Links.of(MASK)
    dense = uniform(*MASK.shape)
    assert torch.equal(links.spread(links.taken(dense)), dense * MASK)
    assert links.size == tuple(MASK.shape) and links.density == MASK.float().mean()
    pairs = torch.stack((links.outputs, links.inputs), 1)[links.order]
    assert torch.equal(pairs, MASK.t().nonzero().flip(1))
    assert torch.equal(pairs[:, 0], links.readers)


def test_the_fewer_connections_the_cheaper_a_sum():
    """Where all connections are cheaper as products, a tenth of them is not."""
    work = Work(10**6, 0, 4, None)
    cpu = torch.device("cpu")
    assert cheapest(work, cpu) == "gemm" and cheapest(work._replace(density=0.1), cpu) == "shift"


@pytest.mark.slow
def test_a_compiled_layer_is_the_same():
    layer, x = layer_of(mask=MASK), spikes(STEPS, BATCH, INPUTS)
    wanted = layer.scan(x)
    layer.clear()
    found = torch.compile(layer, backend="aot_eager")(x)
    torch.testing.assert_close(found, wanted)
    a, b = (torch.autograd.grad(y.sum(), layer.weight)[0] for y in (found, wanted))
    torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [MASK, torch.zeros_like(MASK)], ids=["some", "none"])
def test_operators_of_listed_connections_pass_opcheck(mask):
    links = Links.of(mask)
    weight, back = links.taken(uniform(*mask.shape)), links.taken(torch.ones_like(mask)).int()
    x, dy = uniform(5, BATCH, INPUTS), uniform(3, BATCH, OUTPUTS)
    way, operators = ("shift", "ieee", "reference"), torch.ops.tritonsyn
    checks = "test_schema", "test_faketensor"
    arguments = (x, None, weight, back, list(links), 3, 3, *way)
    torch.library.opcheck(operators.project_component, arguments, test_utils=checks)
    arguments = (dy, x, None, weight, back, list(links), 5, 3, F64, *way)
    torch.library.opcheck(operators.project_component_backward, arguments, test_utils=checks)
