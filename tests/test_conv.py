"""Delayed convolutions against what they are defined by: sums over windows of delayed reads."""

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from synapses import CLASSES, every_kind, gradcheck, same, snapshot, spikes, uniform
from torch import nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tritonsyn import DelayedConv1d, DelayedConv2d, DelayedLinear, functional
from tritonsyn.ops.strategy import Work, cheapest

F64 = torch.float64
BATCH, INPUTS, OUTPUTS, STEP, LONGEST = 2, 4, 8, 1.3, 3.7
GEOMETRIES = {
    "line": ((6,), {"kernel_size": 3}, [(0, 0)]),
    "strided": (
        (9,),
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": True},
        [(1, 1)],
    ),
    "depthwise": ((5,), {"kernel_size": 4, "padding": "same", "groups": INPUTS}, [(1, 2)]),
    "plane": (
        (5, 4),
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
        [(1, 1), (0, 0)],
    ),
    "plane, in groups": (
        (3, 4),
        {"kernel_size": 2, "padding": "same", "groups": 2, "bias": True},
        [(0, 1), (0, 1)],
    ),
}
"""Size of the input, arguments, zeros around it."""
geometries = pytest.mark.parametrize("geometry", list(GEOMETRIES))
ways = pytest.mark.parametrize("way", ["shift", "gemm", "input"])


def physics(kind, each=False):
    """A partial constructor with learned constants, for all channels or of each."""
    values = {"single": [2.0, 5.0], "double": [2.0, 6.0, 2.0], "alpha": [2.0, 3.0]}[kind]
    spread = 1 + 0.1 * torch.arange(INPUTS if each else 1, dtype=F64)
    return CLASSES[kind].partialconstructor(*(nn.Parameter(v * spread) for v in values))


def layer_of(kind="single", geometry="line", way="gemm", synapse=None, **options):
    size, arguments, _ = GEOMETRIES[geometry]
    how = {"delays": "input"} if way == "input" else {"strategy": way}
    how |= {
        "delay": LONGEST, "dtype": F64, "synapse": synapse or physics(kind, "plane" in geometry),
        "weight_init": lambda t: uniform(*t.shape, seed=1, low=-1).to(t),
        "bias_init": lambda t: uniform(*t.shape, seed=3).to(t),
        # Some are out of range, some whole, zero or the longest.
        "delay_init": lambda t: STEP / 2 * uniform(*t.shape, seed=2, low=-3, high=9).to(t).round(),
    }  # fmt: skip
    cls = DelayedConv1d if len(size) == 1 else DelayedConv2d
    return cls(INPUTS, OUTPUTS, step_time=STEP, **{**how, **arguments, **options})


def sequence(geometry="line", steps=5):
    return spikes(steps, BATCH, INPUTS, *GEOMETRIES[geometry][0]).to(F64)


def windows_of(layer, geometry, x):
    """For each place of the kernel its number and what it sees of ``x [N, *size, ...]``."""
    size, _, zeros = GEOMETRIES[geometry]
    rest = [0, 0] * (x.ndim - 1 - len(size))
    x = pad(x, rest + [n for pair in reversed(zeros) for n in pair])
    spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    for i, place in enumerate(product(*map(range, layer.kernel_size))):
        axes = zip(place, layer.dilation, spans, layer.stride, x.shape[1:], strict=False)
        seen = [
            slice(q * dilation, length - span + q * dilation, stride)
            for q, dilation, span, stride, length in axes
        ]
        yield i, x[(slice(None), *seen)]


def materialised(layer, x, geometry):
    """Every connection's current of every position, read step by step; then sums of windows."""
    size, groups, places = GEOMETRIES[geometry][0], layer.groups, math.prod(layer.kernel_size)
    grouped = (groups, OUTPUTS // groups, INPUTS // groups, places)
    weight = layer.weight.reshape(grouped)
    delay = layer.delay.clamp(layer.min_delay, layer.max_delay)
    if layer.delays == "input":
        delay = delay.view(groups, 1, -1, 1).expand(grouped)
    times = delay.reshape(grouped).permute(0, 2, 1, 3).reshape(1, INPUTS, -1)
    found, synapse = [], copy.deepcopy(layer.synapse)
    synapse.load_state_dict(layer.synapse.state_dict())
    for name in synapse._constants:  # the copy's would get the gradients
        setattr(synapse, name, getattr(layer.synapse, name))
    synapse.batchsz = BATCH * math.prod(size)
    for row in x:
        synapse(row.movedim(1, -1).reshape(-1, INPUTS))
        # [B, *size, groups, C / groups, O / groups, places]
        read = synapse.current_at(times).view(BATCH, *size, groups, -1, grouped[1], places)
        y = 0.0
        for i, seen in windows_of(layer, geometry, read):
            y = y + torch.einsum("...gio,goi->...go", seen[..., i], weight[..., i])
        y = y.flatten(-2).movedim(-1, 1)
        found.append(y if layer.bias is None else y + layer.bias.view(-1, *[1] * len(size)))
    return torch.stack(found)


def gradients(y, tensors):
    return torch.autograd.grad((y * uniform(*y.shape, seed=9).to(y)).sum(), tensors)


def assert_same(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@every_kind
@geometries
@ways
def test_equals_windows_of_delayed_reads(device, kind, geometry, way):
    """In values and in gradients; steps and pieces give what the whole sequence gives."""
    layer = layer_of(kind, geometry, way, device=device)
    x = sequence(geometry).to(device).requires_grad_()
    inputs = [x, *layer.parameters()]
    wanted = materialised(layer, x, geometry)
    expected = gradients(wanted, inputs)
    y = layer.scan(x)
    assert y.is_contiguous()
    assert_same([y, *gradients(y, inputs)], [wanted, *expected])
    layer.clear()
    pieces = torch.cat((layer(x[:2]), layer(x[2]).unsqueeze(0), layer(x[3:3]), layer(x[3:])))
    assert_same([pieces, *gradients(pieces, inputs)], [wanted, *expected])
    assert layer.delay_steps.shape == layer.delay.shape
    steps = (layer.delay.clamp(0, LONGEST) / STEP - 1e-9).ceil()
    assert torch.equal(layer.delay_steps, steps.to(torch.int32))


def tiny(way, kind="single", **options):
    """A layer of two channels, two places and one output for each, with delays within bounds."""
    how = {"delays": "input"} if way == "input" else {"strategy": way}
    how |= {"dtype": F64, "synapse": physics(kind), "delay": 1.5}
    how["delay_init"] = lambda t: uniform(*t.shape, seed=3, low=0.1, high=1.2).to(t)
    return DelayedConv1d(2, 2, 2, 1.0, **how, **options)


@pytest.mark.parametrize("way", ["gemm", "input"])
@pytest.mark.parametrize("geometry", ["strided", "plane"])
def test_a_spread_is_that_of_a_dense_layer_of_the_windows(geometry, way):
    synapse = physics("single")
    layer, x = layer_of("single", geometry, way, synapse, spread=2.0), sequence(geometry, 9)
    inner, places = INPUTS // layer.groups, math.prod(layer.kernel_size)
    size = inner * places, OUTPUTS // layer.groups
    how = {"synapse": synapse, "delay": LONGEST, "delays": layer.delays, "dtype": F64}
    layer(x).sum().backward()
    assert layer.delay.grad.any()
    seen = windows_of(layer, geometry, x.movedim(2, -1).flatten(0, 1))
    windows = torch.stack([part for _, part in seen], -1).unflatten(0, x.shape[:2])
    for group in range(layer.groups):
        inputs, outputs = (slice(group * n, (group + 1) * n) for n in (inner, size[1]))
        dense = DelayedLinear(*size, STEP, **how, spread=2.0)
        dense.weight.data = layer.weight.detach()[outputs].flatten(1)
        own = inputs if way == "input" else outputs
        delay, found = layer.delay.detach()[own], layer.delay.grad[own]
        dense.delay.data = delay.repeat_interleave(places) if way == "input" else delay.flatten(1)
        dense(windows[..., inputs, :].flatten(-2).flatten(1, -2)).sum().backward()
        expected = dense.delay.grad.view(*found.shape, -1).sum(-1)
        assert_same([found], [expected])
    with pytest.raises(RuntimeError, match=r"spread=2.0 looks at the steps around"):
        layer(x[0])


@pytest.mark.parametrize("way", ["shift", "input"])
def test_the_kernels_compute_the_same(device, way, short_turns):
    """They are those of the dense layer and of reads."""
    layer = tiny(way, device=device)
    x = spikes(3, 1, 2, 3).to(device, F64).requires_grad_()
    inputs = [x, layer.weight, layer.delay]
    found = []
    for backend in ("reference", "triton"):
        layer.clear()
        layer.backend = backend
        y = torch.cat((layer(x[:2]), layer(x[2]).unsqueeze(0)))
        found.append([y, *gradients(y, inputs)])
    assert_same(*found)


@pytest.mark.parametrize("way", ["shift", "gemm", "input"])
def test_gradcheck(way):
    layer = tiny(way, "alpha")
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        layer.clear()
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    x = uniform(2, 1, 2, 3).requires_grad_()
    assert gradcheck(run, [x, *(p.detach().clone().requires_grad_() for p in layer.parameters())])


@pytest.mark.parametrize("way", ["shift", "gemm", "input"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_in_other_dtypes(way, dtype):
    geometry = "depthwise" if dtype == torch.float16 else "strided"
    layer = layer_of("single", geometry, way, dtype=dtype)
    exact = copy.deepcopy(layer).to(F64)
    x = sequence(geometry).bool()
    y, wanted = layer(x), exact(x)
    assert y.dtype == dtype
    assert (y - wanted).abs().max() <= 8 * torch.finfo(dtype).eps * wanted.abs().max()
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_auto_and_packed_spikes_and_autocast_give_the_same():
    layer, x = layer_of("double", "plane", "auto"), sequence("plane").bool()
    wanted = materialised(layer, x, "plane")
    packed = functional.pack_spikes(x)
    with torch.autocast("cpu"):
        y = layer(packed)
    assert_same([y], [wanted])


def test_batch_and_size_follow_at_rest_only():
    layer = layer_of(batch_size=3)
    assert (layer.batchsz, layer.size) == (3, (1,))
    layer(torch.ones(2, INPUTS, 8))
    assert (layer.batchsz, layer.size, layer.synapse.batchsz) == (2, (8,), 16)
    before = snapshot(layer)
    for shape in ((2, INPUTS, 9), (3, INPUTS, 8), (4, INPUTS, 4)):  # the last with as many rows
        with pytest.raises(ValueError, match=r"batch of . and a size of .*call clear\(\)"):
            layer(torch.ones(shape))
    assert same(before, snapshot(layer))
    layer.clear()
    assert layer(torch.ones(4, INPUTS, 4)).shape == (4, OUTPUTS, 2)
    layer.batchsz = 5
    assert (layer.batchsz, layer.size) == (5, (4,))
    layer.size = 7
    assert (layer.batchsz, layer.size, layer.synapse.batchsz) == (5, (7,), 35)


def test_clears_single_samples():
    layer, x = layer_of("double", "plane", "shift"), sequence("plane")
    layer(x[:3])
    layer.clear(mask=torch.tensor([True, False]))
    whole, rest = layer_of("double", "plane", "shift"), layer_of("double", "plane", "shift")
    y, kept = layer(x[3:]), whole(x)[3:]
    assert_same([y[:, 0], y[:, 1]], [rest(x[3:])[:, 0], kept[:, 1]])


@ways
def test_samples_of_several_lengths_and_the_batch_first(way):
    """Each ends where it would alone; what comes after is zero."""
    layer, x = layer_of("double", "strided", way), sequence("strided")
    whole, after = layer.scan(x), layer(x[0])
    layer.clear()
    lengths = torch.tensor([5, 2])
    y = layer.scan(x, lengths=lengths)
    assert_same([y[:, 0], y[:2, 1], y[2:, 1]], [whole[:, 0], whole[:2, 1], 0 * whole[2:, 1]])
    short = layer_of("double", "strided", way)
    short(x[:2])
    assert_same([layer(x[0])], [torch.stack((after[0], short(x[0])[1]))])
    first = layer_of("double", "strided", way, batch_first=True)
    assert_same([first(x.transpose(0, 1))], [whole.transpose(0, 1)])


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy", "pickle"])
def test_goes_on_in_a_copy(copied):
    layer, x = layer_of("alpha", "plane"), sequence("plane")
    layer(x[:3])
    if copied == "deepcopy":
        twin = copy.deepcopy(layer)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        twin = layer_of("alpha", "plane")
        twin.load_state_dict(layer.state_dict())
    assert (twin.batchsz, twin.size) == (BATCH, (5, 4))
    assert_same([twin(x[3:])], [layer(x[3:])])
    with pytest.raises(ValueError, match="a size of"):
        twin(x[:, :, :, :4])


def test_refuses_a_state_of_another_size():
    layer, other = layer_of(), layer_of()
    layer(sequence()[0])
    state = layer.state_dict()
    before = snapshot(other)
    for size in (torch.tensor([5]), torch.tensor([3, 4]), torch.tensor([0]), "x"):
        with pytest.raises(RuntimeError, match="size of the saved state"):
            other.load_state_dict({**state, "size": size})
    del state["size"]
    with pytest.raises(RuntimeError, match="size"):
        other.load_state_dict(state)
    assert same(before, snapshot(other))


def test_streams_in_place_and_detaches():
    layer, x = layer_of(), sequence()
    layer(x[:2])
    layer.detach_state()
    layer.synapse.inplace = True
    y = layer(x[2:])
    y.sum().backward()
    assert not layer.synapse.current_.storage.requires_grad
    assert layer.weight.grad.abs().sum() > 0


def test_a_number_that_is_not_finite_reaches_what_reads_it():
    """On a CPU also by products, which multiply it with zeros."""
    x = sequence()
    x[1, 0, 0, 3] = math.inf
    found = [layer_of(way=way).eval()(x).isfinite() for way in ("gemm", "shift")]
    assert torch.equal(*found) and not found[0].all() and found[0][:, 1].all()


class Largest(TorchDispatchMode):
    """The largest memory that any operation returns, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return found


@ways
def test_windows_are_never_written_out(way):
    """Forward and backward, no tensor is much larger than the currents with their history."""
    how = {"delays": "input"} if way == "input" else {"strategy": way}
    layer = DelayedConv2d(3, 2, 3, 1.0, synapse=physics("single"), delay=3.0, padding=1, **how)
    layer.to(torch.float32)
    x = spikes(12, 2, 3, 9, 9).float().requires_grad_()
    with Largest() as largest:
        layer(x).sum().backward()
    currents = 4 * (12 + 3) * 2 * 3 * (9 + 2) ** 2  # padded; the windows are five times as large
    assert 4 * x.numel() <= largest.bytes <= currents


def test_many_small_groups_are_summed_one_connection_each():
    """Of two inputs and one output each."""
    how = {"synapse": physics("double"), "delay": 2.5, "groups": 6, "padding": 1}
    layer = DelayedConv1d(12, 6, 3, 1.0, **how, dtype=F64)
    x = spikes(6, 2, 12, 5).to(F64).requires_grad_()
    found = []
    for strategy in ("gemm", "shift"):
        layer.strategy = strategy
        layer.clear()
        y = torch.cat((layer(x[:3]), layer(x[3:])))
        found.append([y, *gradients(y, [x, layer.weight, layer.delay])])
    assert_same(*found)


def test_strategies_by_their_cost():
    device = torch.device("cpu")
    chosen = [cheapest(Work(10**8, 0, k, None, parts=9), device) for k in (5, 500)]
    assert chosen == ["gemm", "shift"]
    assert cheapest(Work(10**8, 0, 500, None, parts=10**6), device) == "gemm"


@pytest.mark.slow
def test_compiled():
    layer = layer_of("single", "line", "shift", capturable=True)
    x = sequence()
    with pytest.raises(ValueError, match="set batchsz and size, which clears"):
        layer(x)
    layer.batchsz, layer.size = BATCH, x.shape[3:]
    eager = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for part in (x[:3], x[2:]):
        y, wanted = compiled(part), eager(part)
        found = gradients(y, list(layer.parameters()))
        assert_same([y, *found], [wanted, *gradients(wanted, list(eager.parameters()))])
        layer.detach_state()
        eager.detach_state()


def test_delays_are_rounded_and_clamped():
    layer = layer_of(min_delay=STEP)
    layer.clamp_delays_()
    assert layer.delay.min() == STEP and layer.delay.max() == LONGEST
    layer.round_delays_()
    assert torch.equal(layer.delay_steps, (layer.delay / STEP).round().int())


def test_has_no_tape():
    layer = layer_of()
    for call in (lambda: layer.unrolled(3), lambda: layer.ahead(sequence())):
        with pytest.raises(NotImplementedError, match="whole sequences"):
            call()


WRONG = [
    ({"groups": 3}, "in_channels must be divisible by groups, 3, but is 4"),
    ({"groups": 2, "out_channels": 5}, "out_channels must be divisible by groups, 2, but is 5"),
    ({"kernel_size": (3, 3)}, "kernel_size must be an integer or a sequence of 1"),
    ({"kernel_size": 0}, "kernel_size must be at least 1, but is 0"),
    ({"stride": 1.5}, "stride must be an integer, but is 1.5"),
    ({"dilation": [-1]}, r"dilation must be at least 1, but is \[-1\]"),
    ({"padding": -1}, "padding must be at least 0, but is -1"),
    ({"padding": "full"}, "padding must be one of same, valid, but is 'full'"),
    ({"padding": "same", "stride": 2}, "padding 'same' needs a stride of 1, but stride is"),
    ({"padding_mode": "circular"}, "padding_mode must be one of zeros, but is 'circular'"),
    ({"strategy": "bits"}, "strategy 'bits' is for dense layers; a convolution takes auto, shift"),
    ({"delays": "output"}, "delays must be one of connection, input, but is 'output'"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_refuses_wrong_arguments(changed, message):
    right = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "step_time": 1.0, "delay": 2.0}
    with pytest.raises((TypeError, ValueError), match=message):
        DelayedConv1d(**{**right, "synapse": physics("single"), **changed})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8), r"x has shape .*\(B, 4, L\), or \(T, B, 4, L\) for a sequence"),
        ((4, 8), "x has shape"),
        ((1, 1, 2, 4, 8), "x has shape"),
        ((2, 4, 2), r"x has a size of \(2,\).*kernel_size \(3,\).*at least \(3,\)"),
        ((0, 4, 8), "batch of 0"),
    ],
)
def test_refuses_inputs_that_do_not_fit(shape, message):
    layer = layer_of()
    before = snapshot(layer)
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(shape))
    with pytest.raises(ValueError, match="sequence"):
        layer.scan(torch.ones(2, 4, 8))
    assert same(before, snapshot(layer)) and layer.size == (1,)


def test_valid_padding_pads_nothing(device):
    layers = []
    for padding in ("valid", 0):
        torch.manual_seed(0)
        how = {"synapse": physics("single"), "delay": 3.0, "padding": padding, "device": device}
        layers.append(DelayedConv1d(2, 3, 4, 1.0, **how))
    x = torch.rand(5, 1, 2, 9, device=device)
    assert layers[0](x).shape == (5, 1, 3, 6)
    layers[0].clear()
    assert torch.equal(layers[0](x), layers[1](x))
