"""Steps in half precision whose states are carried in float32 beside their records."""

import pytest
import torch
from synapses import every_kind, gradcheck, interpreted, spikes, uniform

from tritonsyn import functional
from tritonsyn.functional import ReadRule, Ring

F32, F64 = torch.float32, torch.float64
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SLOTS = 3
SCANS = {
    "single": functional.exp_scan,
    "double": functional.double_exp_scan,
    "alpha": functional.alpha_scan,
}


def factors(kind, tau, dtype=F32):
    """Gain, decays and coupling of a time constant of so many steps."""
    rate = torch.tensor(1.0 / tau, dtype=F64)
    decays = [torch.exp(-rate), *([torch.exp(-2 * rate)] if kind == "double" else [])]
    coupling = rate if kind == "alpha" else None
    gain = torch.tensor(0.7, dtype=F64)
    values = [gain, *decays, *([] if coupling is None else [coupling])]
    return [value.to(dtype) for value in values]


def ring_of(kind, dtype, size=(2, 3), device="cpu", carried=True):
    """At rest, with a record and a carry for each state."""
    states = 1 if kind == "single" else 2
    records = [torch.zeros(SLOTS, *size, dtype=dtype, device=device) for _ in range(states)]
    arithmetic = F64 if dtype == F64 else F32
    carries = [torch.zeros(size, dtype=arithmetic, device=device) for _ in range(states)]
    marks = torch.zeros(SLOTS, *size, dtype=torch.bool, device=device)
    return Ring(records, (0,) * states, marks, 0, None, carries if carried else None)


def step(kind, x, ring, constants, operation=functional.step, **options):
    """The current of a step, and the ring that the next one takes."""
    gain, *decays = constants
    coupling = decays.pop() if kind == "alpha" else None
    y, state = operation(x, ring, gain, decays, coupling=coupling, **options)
    states = len(ring.components)
    pointers = tuple([(pointer + 1) % SLOTS for pointer in ring.pointers])
    ring = ring._replace(components=state[:states], pointers=pointers, spike_pointer=pointers[0])
    return y, ring._replace(carries=state[states:]) if ring.carries else ring


def assert_rounded_once(actual, exact, slack=0.0):
    """Within the distance of two neighbouring numbers of the dtype, and a part of the largest."""
    info = torch.finfo(actual.dtype)
    error = (actual.to(F64) - exact.to(F64)).abs()
    allowed = exact.abs().to(F64) * info.eps + info.smallest_normal * info.eps
    assert (error <= allowed + slack * exact.abs().max()).all(), (error / allowed).max()


@every_kind
@HALVES
@pytest.mark.parametrize("tau", [100, 1000])
def test_many_steps_are_those_of_a_scan(kind, dtype, tau, each_backend, device):
    """Currents, and what records and carries hold."""
    steps = 12 if interpreted() else 3000
    constants = [value.to(device) for value in factors(kind, tau)]
    gain, *others = constants
    x = spikes(steps, 2, 3, rate=0.01)
    x[0] = True
    x[steps // 3 :] = False
    x = x.to(device)
    ring, currents = ring_of(kind, dtype, device=device), []
    for row in x:
        y, ring = step(kind, row, ring, constants)
        currents.append(y)
    expected, finals = SCANS[kind](x, *others, gain, dtype=dtype)
    exact, _ = SCANS[kind](x, *[o.to(F64) for o in others], gain.to(F64), dtype=F64)
    stepped = torch.stack(currents)
    assert stepped.dtype == dtype
    # The interpreter cuts bfloat16 off instead of rounding it: two units. Components cancel.
    units = 2 if interpreted() else 1
    for other in (expected, exact):
        assert_rounded_once(stepped, other, slack=units * 1e-6)
    finals = [finals] if kind == "single" else finals
    for record, carry, final in zip(ring.components, ring.carries, finals, strict=True):
        torch.testing.assert_close(carry, final, rtol=1e-4, atol=1e-12)
        assert_rounded_once(record[ring.pointers[0] - 1], carry)


@HALVES
def test_without_carries_a_long_time_constant_does_not_decay(dtype):
    """What carries are for."""
    ring, constants = ring_of("single", dtype, carried=False), factors("single", 3000)
    for t in range(3000):
        y, ring = step("single", torch.full((2, 3), t == 0), ring, constants)
    assert (y > 1.5 * 0.7 / 2.718).all()


@every_kind
@pytest.mark.parametrize("slots_on_device", [False, True])
def test_the_first_steps_by_hand(kind, slots_on_device, each_backend, device):
    """In bfloat16, from carries that the records could not hold."""
    ring = ring_of(kind, torch.bfloat16, device=device)
    ring.carries[0].fill_(1.0 + 2**-12)
    ring.carries[-1].fill_(1.0 + 2**-11)
    if slots_on_device:
        pointers = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)]
        count = torch.zeros((), dtype=torch.int32, device=device)
        ring = ring._replace(
            pointers=pointers[: len(ring.pointers)], spike_pointer=pointers[2], arrivals=count
        )
    half, one = torch.tensor(0.5, device=device), torch.tensor(1.0, device=device)
    constants = {"single": [one, half], "double": [one, half, half], "alpha": [one, half, one]}
    y, ring = step(kind, torch.ones(2, 3, device=device), ring, constants[kind])
    first = {"single": 0.5 + 2**-12, "double": 0.5 + 2**-13, "alpha": 0.5 + 2**-13}[kind] + 1.0
    second = {"double": 1.5 + 2**-12, "alpha": 1.0 + 1.5 * 2**-12}
    carried = [first] if kind == "single" else [first, second[kind]]
    for carry, record, value in zip(ring.carries, ring.components, carried, strict=True):
        assert (carry == value).all()
        assert (record[0] == torch.tensor(value).bfloat16()).all() and not record[1:].any()
    current = {"single": first, "double": first - second.get(kind, 0.0), "alpha": second.get(kind)}
    assert (y == torch.tensor(current[kind]).bfloat16()).all()
    if slots_on_device:
        assert [int(pointer) for pointer in pointers[: len(ring.pointers)]] == [1] * len(
            ring.pointers
        )


def leaf(*shape, seed, device):
    return uniform(*shape, seed=seed).to(device).requires_grad_()


@every_kind
@pytest.mark.parametrize("per_synapse", [False, True])
def test_gradients(kind, per_synapse, each_backend, device):
    """Of steps to input, constants, records and carries, also by way of a read of a record."""
    states, count = (1 if kind == "single" else 2), (2 if kind == "single" else 3)
    size = (2,) if per_synapse else ()
    constants = [leaf(*size, seed=1 + i, device=device) for i in range(count)]
    records = [leaf(SLOTS, 1, 2, seed=10 + i, device=device) for i in range(states)]
    carries = [leaf(1, 2, seed=20 + i, device=device) for i in range(states)]
    x = leaf(3, 1, 2, seed=5, device=device)

    def program(x, *rest):
        made = ring_of(kind, F64, (1, 2), device)
        copies = [tensor.clone() for tensor in rest[count:]]
        ring = made._replace(components=copies[:states], carries=copies[states:])
        outputs = []
        for t, row in enumerate(x):
            y, ring = step(kind, row, ring, rest[:count])
            outputs.append(y)
            if t == 1:
                record, value = functional.read(ring.components[-1], t)
                ring = ring._replace(components=(*ring.components[:-1], record))
                outputs.append(value)
        return *outputs, *ring.components, *ring.carries

    assert gradcheck(program, (x, *constants, *records, *carries))


def trained(kind, dtype, x, weights, constants, device, backend=None):
    """Gradients of a program of steps, and of a delayed read at the end, to input and constants."""
    leaves = [value.to(device).requires_grad_() for value in (x, *constants)]
    ring, total = ring_of(kind, dtype, device=device), 0.0
    for row, weight in zip(leaves[0].unbind(), weights.to(device), strict=True):
        y, ring = step(kind, row, ring, leaves[1:], backend=backend)
        total = total + (y * weight.to(dtype)).sum(dtype=F64)
    sel = torch.full((1, 3), 1.5, dtype=weights.dtype, device=device)
    read = ring.components[-1:], sel, (None,), ring.pointers[-1:], ReadRule("previous", 1.0, 2.0)
    value, _ = functional.select(*read, backend=backend)
    return torch.autograd.grad(total + value.sum(dtype=F64), leaves)


@every_kind
@HALVES
def test_gradients_of_a_long_chain_are_those_of_float64(kind, dtype, backend, device):
    """All that the records' rounding adds to is one term of the read."""
    steps = 4 if backend == "triton" and device.type == "cpu" else 600
    x = uniform(steps, 2, 3, seed=3).to(F32)
    weights = torch.randint(-4, 5, (steps, 2, 3), generator=torch.Generator().manual_seed(1)) / 4
    exact = trained(kind, F64, x.to(F64), weights.to(F64), factors(kind, 1000, F64), device)
    actual = trained(kind, dtype, x, weights.to(F32), factors(kind, 1000), device, backend)
    for a, e in zip(actual, exact, strict=True):
        assert a.dtype == F32
        # The decays are rounded to float32 as well, which counts as often as there are steps.
        torch.testing.assert_close(a.to(F64), e, rtol=3e-4, atol=3e-4 * float(e.abs().max()))


@HALVES
def test_the_gradient_of_a_long_chain_decays(dtype, device):
    """As ``decay ** steps``: in half precision a factor of 0.999 would be rounded away."""
    steps, constants = 2000, factors("single", 1000)
    x = torch.ones(steps, 2, 3, requires_grad=True, device=device)
    ring = ring_of("single", dtype, device=device)
    for row in x.unbind():
        y, ring = step("single", row, ring, [value.to(device) for value in constants])
    (dx,) = torch.autograd.grad(y.sum(dtype=F32), x)
    gain, decay = (value.to(F64) for value in constants)
    expected = gain * decay ** torch.arange(steps - 1, -1, -1, dtype=F64)
    torch.testing.assert_close(dx[:, 0, 0].cpu().to(F64), expected, rtol=1e-5, atol=0)


@every_kind
@pytest.mark.parametrize(("dtype", "graph"), [(torch.bfloat16, True), (torch.float16, False)])
def test_compiled_steps_are_eager_ones(kind, dtype, graph, device):
    constants = [value.to(device) for value in factors(kind, 300)]
    x = spikes(4, 2, 3).to(device, F32)

    def walk(operation):
        leaves = [x.clone().requires_grad_(graph), *[c.clone() for c in constants]]
        pointer = torch.zeros((), dtype=torch.int64, device=device)
        ring, currents = ring_of(kind, dtype, device=device), []
        ring.carries[0].fill_(1.001)
        given = ring.carries
        ring = ring._replace(pointers=(pointer,) * len(ring.pointers), spike_pointer=pointer)
        for row in leaves[0].unbind():
            y, ring = step(kind, row, ring, leaves[1:], operation)
            currents.append(y)
        y = torch.stack(currents)
        gradients = torch.autograd.grad(y.sum(dtype=F32), leaves[0]) if graph else ()
        in_place = all(a is b for a, b in zip(given, ring.carries, strict=True))
        return [y, *ring.components, *ring.carries, ring.spikes, *gradients], in_place

    torch._dynamo.reset()
    compiled, _ = walk(torch.compile(functional.step, fullgraph=True, backend="aot_eager"))
    eager, in_place = walk(functional.step)
    assert in_place
    for a, b in zip(compiled, eager, strict=True):
        if a.dtype in (dtype, torch.bool):
            assert_rounded_once(a.to(dtype), b.to(F64), slack=1e-6)
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_without_a_graph_carries_are_written_in_place(each_backend, device):
    ring, constants = ring_of("double", torch.float16, device=device), factors("double", 50)
    given = [c.to(device).requires_grad_() for c in constants]
    saved = (ring.carries[0].requires_grad_() ** 2).sum()
    _, after = step("double", torch.ones(2, 3, device=device), ring, given, graph=False)
    for carry, old in zip(after.carries, ring.carries, strict=True):
        assert carry.data_ptr() == old.data_ptr() and not carry.requires_grad
        assert (carry == given[0]).all()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.parametrize(
    ("carries", "error", "message"),
    [
        (torch.zeros(2, 3), ValueError, "ring.carries must hold 1 tensors"),
        ([torch.zeros(2, 3)] * 2, ValueError, "ring.carries must hold 1 tensors"),
        ([None], TypeError, "ring.carries must be a tensor"),
        ([torch.zeros(3, 2).t()], ValueError, "ring.carries has strides .* must be contiguous"),
        ([torch.zeros(SLOTS, 2, 3)], ValueError, r"ring.carries has shape \(3, 2, 3\)"),
        ([torch.zeros(2, 3).bfloat16()], TypeError, "must be torch.float32, in which a torch.bf"),
        ([torch.zeros(2, 3, dtype=F64)], TypeError, "must be torch.float32, in which a torch.bf"),
        ([torch.zeros(2, 3, device="meta")], ValueError, "ring.carries is on meta"),
    ],
)
def test_a_step_refuses_other_carries_and_changes_nothing(carries, error, message):
    ring = ring_of("single", torch.bfloat16)._replace(carries=carries)
    with pytest.raises(error, match=message.replace("torch.bf", "torch.bfloat16")):
        step("single", torch.ones(2, 3), ring, factors("single", 5))
    assert not ring.components[0].any() and not ring.spikes.any()
