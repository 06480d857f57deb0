"""Agreement with inferno-ai 0.0.5 wherever tritonsyn does not depart from it on purpose."""

import pytest
import torch
from synapses import CLASSES, COMPONENTS, PHYSICS, both, interpreted, make, spikes, uniform

inferno = pytest.importorskip("inferno")
pytest.importorskip("inferno.neural")

THEIRS = {
    "single": inferno.neural.SingleExponentialCurrent,
    "double": inferno.neural.DoubleExponentialCurrent,
}
# Relative to the largest current of a run: both sides round every step once or twice.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def pair(kind, device, dtype=torch.float64, shape=(2, 3), step_time=1.0, **options):
    """The same synapse of both libraries."""
    arguments = {**PHYSICS[kind], **options}
    ours = CLASSES[kind](shape, step_time, **arguments, dtype=dtype, device=device)
    theirs = THEIRS[kind](shape, step_time, **arguments).to(device=device, dtype=dtype)
    return ours, theirs


def assert_close(ours, theirs, scale=10.0):
    """Equal but for rounding."""
    assert ours.dtype == theirs.dtype
    tolerance = TOLERANCE.get(ours.dtype, 0.0) * scale
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def times(shape, seed, dt, delay, outside, dtype, device):
    """Times at steps and between them; ``outside`` adds some before, some after the record.

    Those between keep clear of the steps and of the middle, where rounding decides.
    """
    steps = round(delay / dt)
    whole = uniform(*shape, seed=seed, high=steps).floor()
    parts = torch.tensor([0.0, 0.0, 0.21, 0.37, 0.66, 0.83], dtype=torch.float64)
    part = parts[uniform(*shape, seed=seed + 1, high=len(parts)).long()]
    sel = (whole + part).clamp(max=steps) * dt
    if outside:
        where = uniform(*shape, seed=seed + 2)
        sel = torch.where(where < 0.1, -0.4 * dt, sel)
        sel = torch.where(where > 0.9, delay + 2.5, sel)
    return sel.to(device=device, dtype=dtype)


def inputs(batch, shape, seed, device):
    """Spikes of another dtype every time: bool, integer, floating, graded.

    Graded ones are fourths, because inferno multiplies in the input's dtype.
    """
    x = spikes(batch, *shape, seed=seed)
    dtype = [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float64][seed % 5]
    x = x.to(dtype)
    if seed % 3 == 0:
        x = x * uniform(batch, *shape, seed=seed, low=-2.0, high=6.0).round().div(4)
    return x.to(device)


def run_program(ours, theirs, kind, seed, *, changes, overbound, length=30):
    """Random actions on both, compared after each."""
    dtype = getattr(ours, f"{COMPONENTS[kind][0]}_").value.dtype
    device = ours.spike.device
    actions = ["step"] * 6 + ["read"] * 4 + ["clear"] + ["batch", "dt", "delay"] * changes
    inside = False  # their record spans one step more once its delay was set
    for i in range(length):
        step = 1000 * seed + 10 * i
        choice = int(uniform(1, seed=step, high=len(actions)))
        match actions[choice]:
            case "step":
                x = inputs(ours.batchsz, ours.shape, step + i, device)
                assert_close(ours(x), theirs(x))
            case "read":
                depth = (1 + step % 3,) if theirs.spike_.recordsz > 1 and i % 4 else ()
                shape = (*ours.batchedshape, *depth)
                outside = not (inside and overbound is None)
                sel = times(shape, step, ours.dt, ours.delay, outside, dtype, device)
                assert_close(ours.current_at(sel), theirs.current_at(sel))
                assert_close(ours.spike_at(sel), theirs.spike_at(sel))
            case "clear":
                ours.clear(), theirs.clear()
            case "batch":
                ours.batchsz = theirs.batchsz = 1 + i % 3
                theirs.clear()  # ours does that by itself
            case "dt":
                ours.dt = theirs.dt = [0.5, 1.0, 0.25][i % 3]
            case "delay":
                inside = True
                ours.delay = theirs.delay = [3.0, 1.0, 0.0, 2.0][i % 4]
        assert_close(ours.current, theirs.current)
        assert_close(ours.spike, theirs.spike)
    for name in (*(f"{name}_" for name in COMPONENTS[kind]), "spike_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        for offset in range(1, 1 + mine.recordsz):
            assert_close(mine.read(offset), other.read(offset))


@both
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changes", [False, True], ids=["fixed", "changes"])
def test_random_programs(kind, inplace, dtype, changes, device):
    for seed, delay in enumerate([3.0, 0.0, 1.0, 2.0]):
        mode, overbound = ["previous", "nearest"][seed % 2], [0.0, -1.5, None][seed % 3]
        ours, theirs = pair(
            kind, device, dtype, delay=delay, inplace=inplace, spike_interp_mode=mode,
            current_overbound=overbound, batch_size=2,
        )  # fmt: skip
        with torch.no_grad():
            run_program(ours, theirs, kind, seed, changes=changes, overbound=overbound)


@both
def test_random_program_on_each_backend(kind, each_backend, device):
    ours, theirs = pair(kind, device, delay=3.0, batch_size=2)
    length = 12 if interpreted() else 60
    run_program(ours, theirs, kind, 7, changes=True, overbound=0.0, length=length)


@both
@pytest.mark.parametrize("step_time", [0.1, 0.3, 0.7, 1.3])
def test_times_between_steps_of_any_length(kind, step_time, device):
    delay = 5 * step_time
    ours, theirs = pair(kind, device, step_time=step_time, delay=delay, batch_size=2)
    parts = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    for t in range(12):
        x = spikes(2, 2, 3, seed=t).to(device)
        assert_close(ours(x), theirs(x))
        part = parts[uniform(2, 2, 3, 7, seed=t, high=4).long()]
        sel = (uniform(2, 2, 3, 7, seed=t, high=5).floor() + part).to(device) * step_time
        assert_close(ours.current_at(sel), theirs.current_at(sel))
        assert_close(ours.spike_at(sel), theirs.spike_at(sel))


@both
def test_tolerance_of_currents(kind, device):
    """Inside the tolerance both read the observation, outside both interpolate."""
    ours, theirs = pair(kind, device, shape=(4,), delay=3.0, interp_tol=0.1)
    for t in range(5):
        x = spikes(1, 4, seed=t).to(device)
        ours(x), theirs(x)
    near = torch.tensor([[0.95, 2.08, 1.09, 0.02], [-0.05, 3.09, 0.5, 1.2]], dtype=torch.float64)
    for row in near.to(device):
        sel = row.unsqueeze(0)
        assert_close(ours.current_at(sel), theirs.current_at(sel))


def test_strides_do_not_matter(each_backend, device):
    """Transposed and expanded inputs, times and gradients are those of their packed copies."""
    results = []
    for pack in (torch.Tensor.contiguous, torch.Tensor.clone):
        synapse = make(
            "double", (3, 2), delay=2.0, batch_size=4, dtype=torch.float64, device=device
        )
        x = uniform(2, 4, 3, seed=1).to(device).permute(1, 2, 0).requires_grad_()
        one = uniform(1, 3, 1, seed=2).to(device).expand(4, 3, 2).requires_grad_()
        sel = uniform(5, 2, 3, 4, seed=3, high=2.0).to(device).permute(3, 2, 1, 0).requires_grad_()
        y = synapse(pack(x)) + synapse(pack(one))
        read = synapse.current_at(pack(sel))
        weights = uniform(2, 3, 4, seed=4).to(device).permute(2, 1, 0)
        total = (y * weights).sum() + (read.permute(3, 0, 1, 2) * weights).sum()
        results.append([y, read, *torch.autograd.grad(total, (x, one, sel))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@both
def test_no_times_at_all(kind, each_backend, device):
    """D = 0 is a shape like any other, also in backward."""
    synapse = make(kind, 3, delay=2.0, device=device)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    synapse(x)
    sel = torch.zeros(1, 3, 0, device=device, requires_grad=True)
    read = synapse.current_at(sel)
    assert read.shape == synapse.spike_at(sel).shape == (1, 3, 0)
    dx, dsel = torch.autograd.grad(read.sum(), (x, sel))
    assert not dx.any() and dsel.shape == (1, 3, 0)


def gradients(synapse, kind, xs, sels, weights):
    """Gradients of one weighted sum of everything that a run gives."""
    xs = [x.clone().requires_grad_() for x in xs]
    sels = [sel.clone().requires_grad_() for sel in sels]
    total = torch.zeros((), dtype=torch.float64, device=xs[0].device)
    for t, (x, sel) in enumerate(zip(xs, sels, strict=True)):
        total = total + (synapse(x) * weights[t]).sum()
        read = synapse.current_at(sel)
        total = total + (read * uniform(*read.shape, seed=t).to(read)).sum() + read.square().sum()
        for name in COMPONENTS[kind]:
            total = total + getattr(synapse, name).square().sum()
    return torch.autograd.grad(total, [*xs, *sels])


@both
@pytest.mark.parametrize(("overbound", "delay"), [(0.0, 3.0), (None, 1.0)])
def test_gradients(kind, overbound, delay, each_backend, device):
    """To the inputs and to the times, through steps with reads at each.

    At exact steps inferno has no derivative to the time, so these times lie between.
    """
    ours, theirs = pair(kind, device, delay=delay, current_overbound=overbound, batch_size=2)
    steps = 4 if interpreted() else 12
    xs = [uniform(2, 2, 3, seed=t).to(device) for t in range(steps)]
    sels = []
    for t in range(steps):
        depth = (3,) if t % 2 else ()
        sel = uniform(2, 2, 3, *depth, seed=t, high=delay).to(device)
        sels.append(torch.where(sel > 0.9 * delay, 2 * delay, sel))  # some beyond the record
    weights = uniform(steps, 2, 2, 3, seed=99).to(device)
    mine = gradients(ours, kind, xs, sels, weights)
    other = gradients(theirs, kind, xs, sels, weights)
    for t, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert t == len(xs) or b.abs().max() > 0  # the first read finds no current
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@both
@pytest.mark.parametrize("delay", [None, 0.0, 3.0])
def test_as_synapse_of_a_dense_layer(kind, delay, device):
    """As inferno's ``synapse=``: outputs, delayed currents and spikes, gradients."""
    layers = []
    for cls in (CLASSES[kind], THEIRS[kind]):
        layer = inferno.neural.LinearDense(
            (2, 2), 3, 1.0, synapse=cls.partialconstructor(*PHYSICS[kind].values()), delay=delay,
            bias=True, batch_size=2, weight_init=lambda w: uniform(3, 4, seed=1).float(),
            bias_init=lambda b: uniform(3, seed=2).float(),
            delay_init=lambda d: uniform(3, 4, seed=3, high=3.0).float(),
        ).to(device)  # fmt: skip
        assert isinstance(layer.synapse, cls)
        for parameter in layer.parameters():
            parameter.requires_grad_()
        layers.append(layer)
    ours, theirs = layers
    loss = [torch.zeros((), device=device), torch.zeros((), device=device)]
    for t in range(6):
        x = spikes(2, 2, 2, seed=t).to(device)
        for i, layer in enumerate(layers):
            y = layer(x)
            assert y.shape == (2, 3)
            loss[i] = loss[i] + y.square().sum()
        assert_close(ours.syncurrent, theirs.syncurrent)
        assert_close(ours.synspike, theirs.synspike)
    torch.testing.assert_close(*loss, rtol=1e-5, atol=0)
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()]
    mine = torch.autograd.grad(loss[0], list(ours.parameters()), allow_unused=True)
    other = torch.autograd.grad(loss[1], list(theirs.parameters()), allow_unused=True)
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_layer_hands_on_what_it_sets(device):
    """The layer's own batch size, step time and clear reach the synapse."""
    constructor = CLASSES["single"].partialconstructor(10.0, 5.0, "nearest", 0.01, None, None, True)
    layer = inferno.neural.LinearDirect(4, 1.0, synapse=constructor, delay=3.0).to(device)
    assert layer.synapse.inplace and layer.synapse.delay == 3.0
    layer.batchsz, layer.dt = 3, 0.5
    assert (layer.synapse.batchsz, layer.synapse.dt) == (3, 0.5)
    assert layer.synapse.spike_.recordsz == 7
    layer(torch.ones(3, 4, device=device))
    assert layer.synapse.spike.all()
    layer.clear()
    assert not layer.synapse.spike.any()


@both
def test_partialconstructor_takes_the_physics_in_the_order_of_inferno(kind):
    physics = list(PHYSICS[kind].values())
    ours = CLASSES[kind].partialconstructor(*physics)((2, 2), 0.5, 3.0, 4)
    theirs = THEIRS[kind].partialconstructor(*physics)((2, 2), 0.5, 3.0, 4)
    for name in (
        *PHYSICS[kind],
        "shape",
        "count",
        "batchedshape",
        "batchsz",
        "dt",
        "delay",
        "inplace",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert make(kind, (2, 2), 0.5, delay=3.0).spike_.recordsz == theirs.spike_.recordsz == 7
