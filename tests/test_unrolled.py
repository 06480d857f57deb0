"""Layers unrolled on a tape against plain steps: values, gradients, state, and what is refused."""

import contextlib
import copy
import io
import pickle
from unittest import mock

import pytest
import torch
from synapses import CLASSES, every_kind, snapshot, uniform

from tritonsyn import DelayedLinear, functional
from tritonsyn.launch.launcher import recording
from tritonsyn.ops import tape as tapes
from tritonsyn.reference import tape as reference

F64 = torch.float64
STEPS, BATCH, SIZE, STEP, LONGEST = 7, 2, 4, 1.3, 3.7
CONSTANTS = ["number", "each", "learned", "each learned"]


def layer_of(kind="single", constants="number", size=(SIZE, SIZE), dtype=F64, seed=0, **options):
    """A recurrent layer with delays that are whole, fractional, zero, longest and out of range."""
    values = {"single": [2.0, 5.0], "double": [2.0, 6.0, 2.0], "alpha": [2.0, 3.0]}[kind]
    values = [torch.tensor(v, dtype=F64) for v in values]
    if "each" in constants:
        values = [v * (1 + 0.1 * torch.arange(size[0], dtype=F64)) for v in values]
    if "learned" in constants:
        values = [torch.nn.Parameter(v) for v in values]
    delays = 5.0 * uniform(size[1], size[0], seed=seed + 3) - 0.5
    delays.view(-1)[:4] = torch.tensor([0.0, STEP, LONGEST, 2 * STEP], dtype=F64)
    how = {"delay": LONGEST, "bias": True, "batch_size": BATCH, "dtype": dtype}
    how |= {
        "weight_init": lambda t: uniform(*t.shape, seed=seed + 1, low=-1).to(t),
        "bias_init": lambda t: uniform(*t.shape, seed=seed + 2).to(t),
        "delay_init": lambda t: delays.to(t),
    }
    synapse = CLASSES[kind].partialconstructor(*values)
    return DelayedLinear(*size, STEP, synapse=synapse, **{**how, **options})


def stepped(layer, steps):
    return contextlib.nullcontext()


def unrolled(layer, steps):
    return layer.unrolled(steps)


def recurrent(layer, x, z, block, neuron=torch.sigmoid):
    """A recurrent run over ``x [T, B, N]`` from the output ``z`` on: all outputs."""
    found = []
    with block(layer, len(x)):
        for i in x:
            z = neuron(i.to(z.dtype) + layer(z))
            found.append(z)
    return torch.stack(found)


def inputs(steps=STEPS, batch=BATCH, seed=9):
    return uniform(steps, batch, SIZE, seed=seed, low=-2, high=2)


def trained(layer, block, x):
    """Two runs, the second from the state and the graph of the first, and a read after them."""
    x = x.clone().requires_grad_()
    first = recurrent(layer, x[:4], x.new_zeros(BATCH, SIZE), block)
    second = recurrent(layer, x[4:], first[-1], block)
    late = layer.synapse.current_at(torch.full((1, SIZE), 0.7 * layer.max_delay, dtype=x.dtype))
    loss = first.square().sum() + (second * x.detach()[4:]).sum() + late.square().sum()
    gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
    return [first, second, *gradients, *(v.clone() for v in layer.state_dict().values())]


def assert_equal(actual, expected, tolerance=1e-11):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("delay", [0.0, LONGEST])
def test_a_tape_gives_what_steps_give(kind, constants, delay):
    """Values, all gradients, through the state into the run before too, and the state after."""
    layer = layer_of(kind, constants, delay=delay)
    twin = copy.deepcopy(layer)
    assert_equal(trained(layer, unrolled, inputs()), trained(twin, stepped, inputs()))


@every_kind
def test_kernels_give_what_plain_pytorch_gives(kind, backend):
    """In batches that fill lines, and that do not."""
    layer = layer_of(kind, "learned", backend=backend)
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    assert_equal(trained(layer, unrolled, inputs(5)), trained(twin, stepped, inputs(5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_kind
def test_states_are_rounded_as_steps_round_them(kind, dtype):
    """The carry goes on in float32, and what is read later is as the records hold it."""
    layer = layer_of(kind, dtype=dtype, delay_init=lambda t: torch.full_like(t, 2 * STEP))
    twin = copy.deepcopy(layer)
    x = uniform(STEPS, BATCH, SIZE, seed=4) < 0.5
    with torch.no_grad():
        pairs = [(module, block) for module, block in ((layer, unrolled), (twin, stepped))]
        found = []
        for module, block in pairs:
            with block(module, STEPS):
                found.append(torch.stack([module(i) for i in x]))
    exact = dtype != torch.float32
    torch.testing.assert_close(*found, rtol=2e-2 if exact else 1e-5, atol=1e-3 if exact else 1e-5)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, STEPS])
def test_a_block_may_end_early(steps):
    """Also by an exception: the state is that of the steps taken."""
    layer = layer_of()
    twin = copy.deepcopy(layer)
    x = inputs()
    with pytest.raises(KeyError), layer.unrolled(STEPS + 5):
        for i in x[:steps]:
            layer(i)
        raise KeyError
    for i in x[:steps]:
        twin(i)
    assert_equal(layer.state_dict().values(), twin.state_dict().values())
    assert_equal([layer(x[0])], [twin(x[0])])


def test_an_interrupted_step_is_not_taken(monkeypatch):
    layer, x = layer_of(), inputs()
    twin = copy.deepcopy(layer)
    with pytest.raises(KeyboardInterrupt), layer.unrolled(STEPS), monkeypatch.context() as patch:
        layer(x[0])
        patch.setattr(reference, "sums", mock.Mock(side_effect=KeyboardInterrupt))
        layer(x[1])
    twin(x[0])
    assert_equal(layer.state_dict().values(), twin.state_dict().values())


def test_a_block_without_steps_changes_nothing():
    layer = layer_of()
    layer(inputs()[0])
    before = snapshot(layer)
    with layer.unrolled(3):
        pass
    assert_equal(snapshot(layer).values(), before.values(), 0.0)


@pytest.mark.parametrize("silent", [{0, 1}, {3, 4}, {6}, set(range(STEPS))])
def test_steps_without_gradients_cut_the_graph(silent):
    """As in plain steps: what comes later has a graph of its own."""
    x = inputs()

    def run(layer, block):
        z, found = x.new_zeros(BATCH, SIZE), []
        with block(layer, STEPS):
            for t, i in enumerate(x):
                with torch.set_grad_enabled(t not in silent):
                    z = torch.sigmoid(i + layer(z))
                    found.append(z)
        loss = torch.stack(found).square().sum()
        if not loss.requires_grad:
            return found
        return [*found, *torch.autograd.grad(loss, list(layer.parameters()))]

    layer = layer_of(constants="learned")
    twin = copy.deepcopy(layer)
    assert_equal(run(layer, unrolled), run(twin, stepped))


def test_inference_mode_leaves_a_state_that_can_be_trained():
    layer = layer_of()
    twin = copy.deepcopy(layer)
    x = inputs()
    for module, block in ((layer, unrolled), (twin, stepped)):
        with torch.inference_mode():
            recurrent(module, x, x.new_zeros(BATCH, SIZE), block)
    assert_equal(trained(layer, unrolled, x), trained(twin, stepped, x))


def test_a_frozen_layer_passes_gradients_on():
    """Of the input alone, whose first row has none."""
    layer = layer_of().requires_grad_(False)
    twin = copy.deepcopy(layer)
    found = []
    for module, block in ((layer, unrolled), (twin, stepped)):
        x = inputs().requires_grad_()
        y = recurrent(module, x, x.new_zeros(BATCH, SIZE), block)
        found.append([y, *torch.autograd.grad(y.square().sum(), x)])
    assert_equal(*found)


def test_streaming_synapses_pass_gradients_to_taps_alone():
    synapse = CLASSES["single"].partialconstructor(2.0, 5.0, inplace=True)
    layer = DelayedLinear(SIZE, SIZE, STEP, synapse=synapse, delay=LONGEST, dtype=F64)
    twin = copy.deepcopy(layer)
    found = []
    for module, block in ((layer, unrolled), (twin, stepped)):
        z = inputs(batch=2).requires_grad_()
        with block(module, STEPS):
            y = torch.stack([module(i) for i in z])
        found.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
        assert torch.autograd.grad(y.sum() + 0 * z.sum(), z)[0].count_nonzero() == 0
        assert not module.synapse.current_.storage.requires_grad
    assert_equal(*found)


def test_layers_that_feed_each_other():
    """Each has a tape of its own; the last output of one comes from both."""
    x = inputs()
    found = []
    for block in (unrolled, stepped):
        a, b = layer_of(seed=1), layer_of("double", "learned", seed=20)
        y = z = x.new_zeros(BATCH, SIZE)
        kept = []
        with block(a, STEPS), block(b, STEPS):
            for i in x:
                y, z = torch.sigmoid(i + a(z)), torch.sigmoid(b(y) - i)
                kept += [y, z]
        loss = torch.stack(kept).square().sum()
        parameters = [*a.parameters(), *b.parameters()]
        found.append([*kept, *torch.autograd.grad(loss, parameters)])
    assert_equal(*found)


def test_partial_and_repeated_backward_passes():
    """Each pass collects for itself, wherever the one before ended."""
    layer = layer_of(constants="learned")
    x = inputs().requires_grad_()
    y = recurrent(layer, x, x.new_zeros(BATCH, SIZE), unrolled)
    twin = copy.deepcopy(layer_of(constants="learned"))
    w = x.detach().clone().requires_grad_()
    v = recurrent(twin, w, w.new_zeros(BATCH, SIZE), stepped)
    for out, ours, theirs in (
        (slice(5, 7), [x], [w]),
        (slice(0, 3), [x, layer.weight], [w, twin.weight]),
        (slice(0, 7), [layer.delay], [twin.delay]),
        (slice(2, 3), [*layer.parameters()], [*twin.parameters()]),
    ):
        actual = torch.autograd.grad(y[out].square().sum(), ours, retain_graph=True)
        expected = torch.autograd.grad(v[out].square().sum(), theirs, retain_graph=True)
        assert_equal(actual, expected)


def test_a_state_has_a_graph_where_steps_give_it_one():
    """Not of weights and delays: here runs go on after a backward pass, without detach_state()."""
    layer = layer_of()
    for x in (inputs(), inputs(seed=8)):
        with layer.unrolled(STEPS):
            y = torch.stack([layer(i) for i in x])
        y.square().sum().backward()
    assert not layer.synapse.current_.storage.requires_grad


def test_backward_passes_may_be_in_progress_at_once():
    """In several threads, or as here in a hook of another."""
    layer, x = layer_of(), inputs().requires_grad_()
    with layer.unrolled(STEPS):
        y = [layer(i) for i in x]

    early, late = (sum(i.square().sum() for i in part) for part in (y[2:4], y[4:]))

    def gradients(loss):
        return torch.autograd.grad(loss, [x, layer.delay], retain_graph=True)

    expected, found = [*gradients(late), *gradients(early)], []
    y[5].register_hook(lambda _: found.extend(gradients(early)))
    assert_equal([*gradients(late), *found], expected)


def test_a_forgotten_clear_is_named():
    """A run that goes on from a state whose graph is freed says what to do."""
    layer = layer_of()
    for attempt in range(2):
        loss = recurrent(layer, inputs(), inputs()[0], unrolled, torch.neg).sum()
        words = r"Call clear\(\) before a new sequence, or detach_state\(\)"
        with pytest.raises(RuntimeError, match=words) if attempt else contextlib.nullcontext():
            loss.backward()


def test_a_backward_pass_within_a_block_is_named():
    """The second one reaches the graph of the taps, which the first has freed."""
    layer = layer_of()
    with layer.unrolled(2):
        layer(inputs()[0]).sum().backward()
        with pytest.raises(RuntimeError, match=r"call backward after the block"):
            layer(inputs()[1]).sum().backward()


def test_what_is_kept_does_not_grow_with_the_longest_delay():
    """Of a step a row of the currents and one of the gradients of the outputs."""
    sizes = []
    for slots in (5, 41):
        layer = layer_of(delay=(slots - 1) * STEP, bias=False)
        with layer.unrolled(100):
            layer(inputs()[0])
            tape = layer._unrolling._tape
            rows = len(tape.tapes[0].memory), len(tapes._Pass(tape).dy.memory)
        sizes.append([count - (slots - 1) for count in rows])
        sizes[-1][1] -= slots - 1  # on either side
    assert sizes == [[100, 100]] * 2


# -- ahead ---------------------------------------------------------------------------------------


def ahead_of(layer, x, m):
    """A recurrent run in blocks of ``m`` steps."""
    z, found = x.new_zeros(m, BATCH, SIZE), []
    with layer.unrolled(len(x)):
        for i in x.split(m):
            z = torch.sigmoid(i + layer.ahead(z))
            found.append(z)
    return torch.cat(found)


@every_kind
@pytest.mark.parametrize("m", [1, 2, 3])
def test_blocks_give_what_steps_give(kind, m, backend):
    """Six steps in blocks; the layer has then seen zeros in place of the last outputs."""
    layer = layer_of(kind, "each learned", min_delay=2 * STEP, backend=backend)
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    found = []
    for module in (layer, twin):
        x = inputs(6).requires_grad_()
        if module is layer:
            y = ahead_of(module, x, m)
        else:
            with torch.no_grad():
                for _ in range(m - 1):  # the zeros before the first step
                    module(x.new_zeros(BATCH, SIZE))
            y = recurrent(module, x, x.new_zeros(BATCH, SIZE), stepped)
        wanted = [x, *module.parameters()]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    assert_equal(*found, 1e-10)


def test_blocks_and_steps_in_turn():
    """An output that two calls give gets the gradients of both."""
    x = inputs(7)

    def run(layer, ahead):
        z, found = x.clone().requires_grad_(), []
        with layer.unrolled(7) if ahead else contextlib.nullcontext():
            if ahead:
                found += [layer(z[0]), *layer.ahead(z[1:4]), layer(z[4]), *layer.ahead(z[5:7])]
            else:
                y = [layer(i) for i in z]
                with torch.enable_grad():
                    later = [layer(z.new_zeros(BATCH, SIZE)) for _ in range(2)]
                y += later
                found += [y[0], y[3], y[4], y[5], y[4], y[6], y[7]]
        weights = torch.linspace(1, 2, len(found), dtype=F64)
        loss = sum((f * f * w).sum() for f, w in zip(found, weights, strict=True))
        return [*found, *torch.autograd.grad(loss, [z, *layer.parameters()])]

    layer = layer_of(constants="learned", min_delay=2 * STEP)
    twin = copy.deepcopy(layer)
    assert_equal(run(layer, True), run(twin, False))


def test_a_block_is_as_many_launches_as_a_step(device):
    """So a run of T steps in blocks of m takes T / m times those."""
    layer = layer_of(min_delay=2 * STEP, backend="triton", bias=False).to(device)
    counts = []
    with recording() as launches, torch.no_grad(), layer.unrolled(20):
        layer(inputs()[0].to(device))
        for call in (lambda: layer(inputs()[0]), lambda: layer.ahead(inputs(3))):
            before = len(launches)
            call()
            counts.append([launch.name for launch in launches[before:]])
    assert counts == [["exp_scan_kernel", "shift_sum_kernel"]] * 2


# -- what is refused -----------------------------------------------------------------------------

STATE = {
    "current": lambda layer: layer.synapse.current,
    "current_at": lambda layer: layer.synapse.current_at(torch.zeros(1, SIZE, dtype=F64)),
    "spike": lambda layer: layer.synapse.spike,
    "record": lambda layer: layer.synapse.current_.value,
    "history": lambda layer: layer.synapse.current_.history(1),
    "record dt": lambda layer: setattr(layer.synapse.current_, "dt", 2.0),
    "set": lambda layer: setattr(layer.synapse, "current", torch.zeros(BATCH, SIZE, dtype=F64)),
    "synapse": lambda layer: layer.synapse(inputs()[0]),
    "synapse scan": lambda layer: layer.synapse.scan(inputs()),
    "clear": lambda layer: layer.clear(),
    "clear mask": lambda layer: layer.clear(torch.tensor([True, False])),
    "detach": lambda layer: layer.detach_state(),
    "scan": lambda layer: layer.scan(inputs()),
    "sequence": lambda layer: layer(inputs()),
    "again": lambda layer: layer.unrolled(3).__enter__(),
    "batchsz": lambda layer: setattr(layer, "batchsz", 3),
    "delay": lambda layer: setattr(layer, "max_delay", 9.0),
    "min_delay": lambda layer: setattr(layer, "min_delay", 1.0),
    "dt": lambda layer: setattr(layer, "dt", 1.0),
    "to": lambda layer: layer.to(torch.float32),
    "copy": copy.deepcopy,
    "pickle": pickle.dumps,
    "save": lambda layer: torch.save(layer, io.BytesIO()),
    "state_dict": lambda layer: layer.state_dict(),
    "load": lambda layer: layer.load_state_dict(layer_of().state_dict()),
}


@pytest.mark.parametrize("use", STATE)
def test_the_state_is_left_alone_within_a_block(use):
    """An error says so, and the run goes on as if nothing had been asked."""
    layer = layer_of()
    for _ in range(3):  # so that nothing is left to prepare
        STATE["synapse"](layer)
        STATE["current_at"](layer)
        layer(inputs()[0])
    twin = copy.deepcopy(layer)
    x = inputs()
    with layer.unrolled(STEPS):
        found = [layer(i) for i in x[:3]]
        with pytest.raises(RuntimeError, match="unrolled"):
            STATE[use](layer)
        found += [layer(i) for i in x[3:]]
    assert_equal(found, [twin(i) for i in x])
    assert_equal(layer.state_dict().values(), twin.state_dict().values())


def test_synapses_are_on_one_tape_at_a_time():
    layer, other, plain = (layer_of() for _ in range(3))
    other.synapse = plain.synapse = layer.synapse
    x = inputs()[0]
    times = torch.zeros(1, SIZE, dtype=F64)
    with layer.unrolled(3), other.unrolled(3), layer.synapse.unrolled(3, times):
        layer(x)
        for module in (other, plain, layer.synapse):
            with pytest.raises(RuntimeError, match="on a tape"):
                module(x)
    assert layer.synapse.spike_.pointer == 1


def test_a_copy_is_not_unrolled():
    layer, x = layer_of(), inputs()[0]
    with layer.unrolled(3):
        twin = copy.deepcopy(layer)
        layer(x)
    twin(x)
    assert_equal(layer.state_dict().values(), twin.state_dict().values())


WRONG = {
    "too many": (lambda layer: layer(inputs()[0]), ValueError, r"unrolled\(3\) has room for 3"),
    "batch": (lambda layer: layer(inputs(batch=3)[0]), ValueError, "batch of 3"),
    "width": (lambda layer: layer(torch.zeros(BATCH, 5, dtype=F64)), ValueError, "x has shape"),
    "complex": (lambda layer: layer(inputs()[0] * 1j), TypeError, "x must be bool"),
    "sparse": (lambda layer: layer(inputs()[0].to_sparse()), TypeError, "x must be dense"),
    "no tensor": (lambda layer: layer([1.0]), TypeError, "must be a tensor"),
    "far": (lambda layer: layer.ahead(inputs(4)), ValueError, "z must have 1 to 3 steps"),
    "none": (lambda layer: layer.ahead(inputs(0)), ValueError, "z must have 1 to 3 steps"),
    "step": (lambda layer: layer.ahead(inputs()[0]), ValueError, "x has shape"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_change_nothing(what):
    call, error, words = WRONG[what]
    layer = layer_of(min_delay=2 * STEP)
    twin = copy.deepcopy(layer)
    x = inputs(3)
    with layer.unrolled(3):
        found = [layer(i) for i in x[: 3 if what == "too many" else 2]]
        with pytest.raises(error, match=words):
            call(layer)
        found += [layer(i) for i in x[len(found) :]]
    assert_equal(found, [twin(i) for i in x])
    assert_equal(layer.state_dict().values(), twin.state_dict().values())


def test_arguments_are_judged():
    layer = layer_of()
    for steps, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="steps"), layer.unrolled(steps):
            pass
    with pytest.raises(RuntimeError, match=r"inside of `with layer\.unrolled"):
        layer.ahead(inputs(1))
    for value, words in ((-1.0, "at least 0"), (9.0, "at most the longest delay, 3.7")):
        with pytest.raises(ValueError, match=words):
            layer_of(min_delay=value)
        with pytest.raises(ValueError, match=words):
            layer.min_delay = value
    layer.min_delay = 2.0
    with pytest.raises(ValueError, match=r"at least min_delay, 2\.0"):
        layer.max_delay = 1.0
    assert layer.min_delay == 2.0 and layer.max_delay == LONGEST


def test_delays_count_from_the_shortest_on():
    """They start there, count as that below it, and are clamped and rounded to it."""
    layer = layer_of(min_delay=1.5, delay_init=None)
    assert layer.delay.min() >= 1.5
    torch.nn.init.zeros_(layer.delay)
    twin = layer_of(delay_init=lambda t: torch.full_like(t, 1.5))
    assert_equal([layer.scan(inputs())], [twin.scan(inputs())])
    layer.round_delays_()
    assert (layer.delay == 1.5).all()
    torch.nn.init.constant_(layer.delay, 9.0)
    layer.clamp_delays_()
    assert (layer.delay == LONGEST).all()


@pytest.mark.parametrize(
    ("delay", "dtype"), [(float("nan"), F64), (27.3, torch.bfloat16)], ids=["nan", "rounded"]
)
def test_no_delay_is_below_the_shortest(delay, dtype):
    """That of a NaN counts as 0, and in bfloat16 the bound is 27.25 ms."""
    how = {"delay": 30.0, "min_delay": 27.3, "dtype": dtype}
    layer, twin = (layer_of(**how) for _ in range(2))
    with torch.no_grad():
        layer.delay[1, 2] = twin.delay[1, 2] = delay
    layer.synapse.dt = twin.synapse.dt = 0.05
    x = inputs().to(dtype)
    with layer.unrolled(STEPS):
        y = torch.stack([layer(i) for i in x])
    torch.testing.assert_close(y, twin.scan(x), equal_nan=True)


def test_what_is_not_finite_stays_where_it_is_read():
    """A product with a matrix would spread it to connections of other delays."""
    found = []
    for block in (unrolled, stepped):
        layer = layer_of()
        x = inputs()
        x[2, 0, 1] = float("nan")
        x[3, 1, 2] = float("inf")
        x.requires_grad_()
        with block(layer, STEPS):
            y = torch.stack([layer(i).mul_(2.0) for i in x])
        dy = torch.ones_like(y)
        dy[5, 1, 0] = float("nan")
        found.append([y, *torch.autograd.grad(y, x, dy)])
    torch.testing.assert_close(*found, equal_nan=True, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("batch", "outputs"), [(1, 3), (3, 1), (1, 1)])
def test_outputs_are_no_views(batch, outputs):
    """Whatever their strides are, they may be written in place."""
    layer = layer_of(size=(SIZE, outputs), min_delay=STEP)
    with layer.unrolled(3):
        layer(inputs(1, batch)[0]).mul_(2.0)
        layer.ahead(inputs(2, batch)).mul_(2.0).sum().backward()


def test_the_output_may_be_written_in_place_and_the_input_reused():
    """A step keeps nothing that the caller can change."""
    found = []
    for block in (unrolled, stepped):
        layer = layer_of()
        buffer, x = torch.zeros(BATCH, SIZE, dtype=F64), inputs()
        kept = []
        with block(layer, STEPS):
            for i in x:
                y = layer(buffer)
                y += i
                kept.append(y)
                buffer.copy_(y.detach().sigmoid())
        loss = torch.stack(kept).square().sum()
        state = layer.state_dict().values()
        found.append([*kept, *torch.autograd.grad(loss, list(layer.parameters())), *state])
    assert_equal(*found)


def test_autocast_leaves_the_arithmetic_alone():
    found = []
    for enabled in (True, False):
        layer = layer_of(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), layer.unrolled(STEPS):
            y = torch.stack([layer(i) for i in inputs().float()])
        found.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    assert_equal(*found, 0.0)


# -- reads at the same times ---------------------------------------------------------------------


def reading(synapse, x, times, block):
    """Steps whose input depends on what was read; what they gave, gradients and the state."""
    x, times = x.clone().requires_grad_(), times.clone().requires_grad_()
    z, found = torch.zeros_like(x[0]), []
    for _ in range(3):  # so that nothing is left to prepare
        synapse(z)
    for part in (x[:3], x[3:]):
        with synapse.unrolled(len(part), times) if block else contextlib.nullcontext():
            for i in part:
                if block:
                    current, delayed = synapse(z)
                else:
                    current, delayed = synapse(z), synapse.current_at(times)
                read = delayed if delayed.ndim == z.ndim else delayed.sum(-1)
                z = torch.sigmoid(i + read.nan_to_num())
                found += [current, delayed]
    loss = sum(f.nan_to_num().square().sum() for f in found)
    wanted = [x, times, *synapse.parameters()]
    return [*found, *torch.autograd.grad(loss, wanted), *synapse.state_dict().values()]


@every_kind
@pytest.mark.parametrize("constants", ["number", "each learned"])
@pytest.mark.parametrize("rows", [1, BATCH])
@pytest.mark.parametrize("depth", [None, 3])
@pytest.mark.parametrize("overbound", [None, 0.25])
def test_reads_at_times_given_once(kind, constants, rows, depth, overbound):
    """They give what a step and ``current_at`` give, out of bounds and for NaN too."""
    sizes = {"single": [2.0, 5.0], "double": [2.0, 6.0, 2.0], "alpha": [2.0, 3.0]}[kind]
    group = (2, 2)
    values = [torch.tensor(v, dtype=F64) for v in sizes]
    if constants != "number":
        values = [torch.nn.Parameter(v + 0.1 * uniform(*group, seed=3)) for v in values]
    make = CLASSES[kind].partialconstructor(*values, current_overbound=overbound)
    synapse = make(group, STEP, LONGEST, BATCH, dtype=F64)
    twin = copy.deepcopy(synapse)
    shape = (rows, *group) if depth is None else (rows, *group, depth)
    times = 5.0 * uniform(*shape, seed=5) - 0.5
    times.view(-1)[:4] = torch.tensor([0.0, STEP, LONGEST, float("nan")], dtype=F64)
    x = inputs().view(STEPS, BATCH, *group)
    actual, expected = reading(synapse, x, times, True), reading(twin, x, times, False)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_no_times_are_read():
    synapse = CLASSES["single"](SIZE, STEP, spike_charge=1.0, time_constant=2.0, dtype=F64)
    with synapse.unrolled(3, torch.zeros(1, SIZE, 0, dtype=F64)):
        current, delayed = synapse(inputs()[0])
    assert torch.equal(current, synapse.current) and delayed.shape == (BATCH, SIZE, 0)


def test_times_that_do_not_fit_change_nothing():
    synapse = CLASSES["single"](SIZE, STEP, spike_charge=1.0, time_constant=2.0, dtype=F64)
    with pytest.raises(ValueError, match="selector has shape"):
        with synapse.unrolled(3, torch.zeros(1, 5, dtype=F64)):
            synapse(inputs()[0])
    assert not any(value.any() for value in synapse._spikes)
    assert synapse(inputs()[0]).shape == (BATCH, SIZE)


def test_a_subclass_may_have_members_of_its_own():
    """Common names are the user's."""

    class Recurrent(DelayedLinear):
        run = lent = unrolling = tape = "mine"

    layer = Recurrent(2, 2, 1.0, synapse=CLASSES["single"].partialconstructor(1.0, 2.0), delay=2.0)
    with layer.unrolled(2):
        assert layer(torch.ones(1, 2)).shape == (1, 2)


def test_blocks_of_one_layer_are_not_nested():
    layer, x = layer_of(), inputs(3)
    twin = copy.deepcopy(layer)
    with layer.unrolled(3):
        with pytest.raises(RuntimeError, match="within another unrolled"), layer.unrolled(2):
            pass
        found = [layer(i) for i in x]
    assert_equal(found, [twin(i) for i in x])


def test_blocks_of_steps_are_tensors():
    layer, x = layer_of(min_delay=STEP), inputs(3)
    twin = copy.deepcopy(layer)
    with layer.unrolled(2):
        with pytest.raises(TypeError, match="z must be a tensor, but is PackedSpikes"):
            layer.ahead(functional.pack_spikes(x[:2] > 0))
        found = layer.ahead(x[:2])
    with twin.unrolled(2):
        assert_equal([found], [twin.ahead(x[:2])])
