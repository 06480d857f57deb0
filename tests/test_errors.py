"""Every refusal names the argument, what was given and the rule, and leaves the state as it was."""

import copy
import math
import re

import pytest
import torch
from synapses import (
    CLASSES,
    COMPONENTS,
    PHYSICS,
    RECORDS,
    every_kind,
    make,
    same,
    snapshot,
    spikes,
    uniform,
)
from torch import nn

import tritonsyn

NAN, INF = math.nan, math.inf


def refused(error, *words):
    """Expects an error whose message holds all of these words."""
    everything = "".join(f"(?=.*{re.escape(str(word))})" for word in words)
    return pytest.raises(error, match=f"(?s){everything}")


# -- construction ---------------------------------------------------------------------------------

COMMON = [
    # argument, value, error, what the message holds besides the argument
    ("step_time", 0.0, ValueError, "greater than 0, but is 0.0"),
    ("step_time", -1.0, ValueError, "greater than 0, but is -1.0"),
    ("step_time", NAN, ValueError, "finite, but is nan"),
    ("step_time", INF, ValueError, "finite, but is inf"),
    ("step_time", "1", TypeError, "a number, but is '1'"),
    ("step_time", None, TypeError, "a number, but is None"),
    ("step_time", True, TypeError, "a number, but is True"),
    ("step_time", torch.ones(2), TypeError, "a number"),
    ("delay", -0.5, ValueError, "at least 0, but is -0.5"),
    ("delay", NAN, ValueError, "finite, but is nan"),
    ("delay", INF, ValueError, "finite, but is inf"),
    ("delay", "3", TypeError, "a number, but is '3'"),
    ("interp_tol", -1e-9, ValueError, "at least 0, but is -1e-09"),
    ("interp_tol", NAN, ValueError, "finite, but is nan"),
    ("current_overbound", NAN, ValueError, "finite, but is nan"),
    ("current_overbound", -INF, ValueError, "finite, but is -inf"),
    ("current_overbound", "0", TypeError, "a number, but is '0'"),
    ("spike_interp_mode", "linear", ValueError, "one of previous, nearest, but is 'linear'"),
    ("spike_interp_mode", "", ValueError, "one of previous, nearest, but is ''"),
    ("spike_interp_mode", None, ValueError, "one of previous, nearest, but is None"),
    ("shape", 0, ValueError, "positive integer, but is 0"),
    ("shape", (3, 0), ValueError, "[1] must be a positive integer, but is 0"),
    ("shape", (-1,), ValueError, "[0] must be a positive integer, but is -1"),
    ("shape", 2.0, TypeError, "positive integer or a sequence of them, but is 2.0"),
    ("shape", (2.0,), TypeError, "[0] must be a positive integer, but is 2.0"),
    ("shape", "23", TypeError, "but is '23'"),
    ("shape", (), TypeError, "but is ()"),
    ("shape", True, TypeError, "positive integer, but is True"),
    ("batch_size", 0, ValueError, "positive integer, but is 0"),
    ("batch_size", -2, ValueError, "positive integer, but is -2"),
    ("batch_size", 1.5, TypeError, "positive integer, but is 1.5"),
    ("batch_size", True, TypeError, "positive integer, but is True"),
    ("dtype", torch.int32, TypeError, "torch.bfloat16, torch.float16, but is torch.int32"),
    ("dtype", torch.bool, TypeError, "but is torch.bool"),
    ("dtype", torch.complex64, TypeError, "but is torch.complex64"),
    ("backend", "cuda", tritonsyn.BackendError, "'cuda', but must be one of auto, triton,"),
    ("spike_charge", 0, ValueError, "nonzero, but is 0.0"),
    ("spike_charge", NAN, ValueError, "finite, but is nan"),
    ("spike_charge", -INF, ValueError, "finite, but is -inf"),
    ("spike_charge", "10", TypeError, "a number, but is '10'"),
    ("spike_charge", None, TypeError, "a number, but is None"),
    ("spike_charge", torch.tensor([1.0, 0.0, 2.0]), ValueError, "nonzero, but holds 0.0"),
    ("spike_charge", torch.tensor([1.0, NAN, 2.0]), ValueError, "nonzero, but holds nan"),
    ("spike_charge", torch.tensor([1, 2, 3]), TypeError, "floating tensor, but is torch.int64"),
    ("spike_charge", torch.ones(2), ValueError, "shape (2,), which does not broadcast to (3,)"),
    ("spike_charge", torch.ones(2, 3), ValueError, "(2, 3), which does not broadcast to (3,)"),
]  # fmt: skip
TIME_CONSTANTS = [
    (0, ValueError, "greater than 0, but is 0.0"),
    (-5.0, ValueError, "greater than 0, but is -5.0"),
    (NAN, ValueError, "finite, but is nan"),
    (INF, ValueError, "finite, but is inf"),
    ("5", TypeError, "a number, but is '5'"),
    (torch.tensor([5.0, -1.0, 5.0]), ValueError, "finite and greater than 0, but holds -1.0"),
    (torch.tensor([5.0, INF, 5.0]), ValueError, "finite and greater than 0, but holds inf"),
    (torch.full((4,), 5.0), ValueError, "shape (4,), which does not broadcast to (3,)"),
    (torch.tensor(5), TypeError, "floating tensor, but is torch.int64"),
]


@every_kind
@pytest.mark.parametrize(("name", "value", "error", "words"), COMMON)
def test_constructor(kind, name, value, error, words):
    arguments = {"shape": 3, "step_time": 1.0, **PHYSICS[kind], name: value}
    with refused(error, name, words):
        CLASSES[kind](**arguments)


@pytest.mark.parametrize("name", ["time_constant", "tc_decay", "tc_rise"])
@pytest.mark.parametrize(("value", "error", "words"), TIME_CONSTANTS)
def test_constructor_time_constants(name, value, error, words):
    kind = "single" if name == "time_constant" else "double"
    with refused(error, name, words):
        make(kind, **{name: value})


@pytest.mark.parametrize(
    ("decay", "rise"),
    [(5.0, 5.0), (2.0, 5.0), (torch.tensor([6.0, 6.0, 2.0]), 2.0), (6.0, torch.full((3,), 6.0))],
)
def test_decay_must_be_slower_than_the_rise(decay, rise):
    with refused(ValueError, "tc_decay must be greater than tc_rise", decay, rise):
        make("double", tc_decay=decay, tc_rise=rise)


@every_kind
def test_physical_arguments_are_required_and_by_name(kind):
    first = next(iter(PHYSICS[kind]))
    with refused(TypeError, first):
        CLASSES[kind](3, 1.0)
    with refused(TypeError, "positional"):
        CLASSES[kind](3, 1.0, *PHYSICS[kind].values())
    with refused(TypeError, "tc_middle"):
        make(kind, tc_middle=1.0)


@every_kind
def test_partialconstructor_checks_where_it_constructs(kind):
    physics = dict(PHYSICS[kind], spike_charge=0.0)
    with refused(ValueError, "spike_charge must be nonzero, but is 0.0"):
        CLASSES[kind].partialconstructor(**physics)(3, 1.0, 0.0, 1)
    with refused(ValueError, "step_time must be greater than 0, but is 0.0"):
        CLASSES[kind].partialconstructor(**PHYSICS[kind])(3, 0.0, 0.0, 1)


@every_kind
def test_mode_is_known_in_any_case(kind):
    for mode in ("Nearest", "NEAREST", "Previous"):
        assert make(kind, spike_interp_mode=mode).shape == (3,)


# -- refused calls leave the state as it was ------------------------------------------------------


@pytest.fixture
def running(kind, device):
    """A synapse with something in its records, and that it ends as it began."""
    synapse = make(kind, (2, 3), delay=2.0, batch_size=2, device=device)
    for t in range(4):
        synapse(spikes(2, 2, 3, seed=t).to(device))
    before, twin = snapshot(synapse), copy.deepcopy(synapse)
    yield synapse
    assert same(snapshot(synapse), before)
    x = spikes(2, 2, 3, seed=9).to(device)
    assert torch.equal(synapse(x), twin(x))
    assert same(snapshot(synapse), snapshot(twin))


@every_kind
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(2, 3), ValueError, "x has shape (2, 3), but must have (2, 2, 3)"),
        (
            torch.zeros(1, 2, 3),
            ValueError,
            "x has a batch of 1, but the state is of a batch of 2; call clear() first",
        ),
        (torch.zeros(2, 3, 2), ValueError, "x has shape (2, 3, 2), but must have (2, 2, 3)"),
        (
            torch.zeros(2, 2, 3, 1),
            ValueError,
            "x has shape (2, 2, 3, 1), but must have (T, 2, 2, 3)",
        ),
        (torch.zeros(0, 2, 3), ValueError, "x has a batch of 0, but must have at least one row"),
        (torch.tensor(1.0), ValueError, "x has shape ()"),
        (torch.zeros(2, 2, 3, dtype=torch.complex64), TypeError, "x must be bool, integer or"),
        (torch.zeros(2, 2, 3, device="meta"), ValueError, "x is on meta, but the record is on"),
        (1.0, TypeError, "x must be a tensor, but a float was given"),
        (None, TypeError, "x must be a tensor, but a NoneType was given"),
        ([[1.0]], TypeError, "x must be a tensor, but a list was given"),
    ],
)
def test_forward(running, given, error, words, device):
    if isinstance(given, torch.Tensor) and given.device.type != "meta":
        given = given.to(device)
    with refused(error, words):
        running(given)


@every_kind
def test_forward_without_input(running):
    with refused(TypeError, "missing 1 required positional argument: 'x'"):
        running()


@every_kind
@pytest.mark.parametrize("keywords", [{"bakend": "triton"}, {"state": None}, {"trainable": True}])
def test_unknown_keywords(running, keywords):
    """And inputs besides the one: nothing that is given is ignored."""
    x = torch.zeros(2, 2, 3)
    with refused(TypeError, "unexpected keyword argument", next(iter(keywords))):
        running(x, **keywords)
    with refused(TypeError, "takes 2 positional arguments but 3 were given"):
        running(x, x)
    with refused(TypeError, "unexpected keyword argument", next(iter(keywords))):
        running.clear(**keywords)


@every_kind
def test_forward_with_an_unknown_backend(running, device):
    with refused(tritonsyn.BackendError, "'cpu', but must be one of auto, triton, reference"):
        running(torch.zeros(2, 2, 3, device=device), backend="cpu")


READS = {
    "single": ("current_at", "spike_at"),
    "double": ("current_at", "spike_at", "pos_current_at", "neg_current_at"),
    "alpha": ("current_at", "spike_at"),
}


@every_kind
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(2), ValueError, ("shape (2,)", "(1 or 2, 2, 3) or (1 or 2, 2, 3, D)")),
        (torch.zeros(2, 3), ValueError, ("shape (2, 3)", "(1 or 2, 2, 3)")),
        (torch.zeros(2, 2, 3, 1, 1), ValueError, ("shape (2, 2, 3, 1, 1)", "(1 or 2, 2, 3, D)")),
        (torch.zeros(2, 3, 2), ValueError, ("shape (2, 3, 2)",)),
        (torch.zeros(3, 2, 3), ValueError, ("shape (3, 2, 3)",)),
        (torch.zeros(2, 4, 3), ValueError, ("shape (2, 4, 3)", "any size of the group may be 1")),
        (torch.zeros(1), ValueError, ("shape (1,)", "or ()")),
        (torch.zeros(2, 2, 3, dtype=torch.bool), TypeError, ("floating or integer", "torch.bool")),
        (torch.zeros(2, 2, 3).to_sparse(), TypeError, ("dense", "torch.sparse_coo")),
        (torch.zeros(2, 2, 3, dtype=torch.bool), TypeError, ("floating", "torch.bool")),
        (torch.zeros(2, 2, 3, dtype=torch.complex64), TypeError, ("floating", "complex64")),
        (torch.zeros(2, 2, 3, device="meta"), ValueError, ("is on meta, but the record is on",)),
        (True, TypeError, ("must be a tensor of times or a number, but a bool was given",)),
        (float("inf"), ValueError, ("must be finite, but is inf",)),
        (1e39, ValueError, ("must be at most 3.403e+38 in torch.float32",)),
        (None, TypeError, ("must be a tensor of times or a number, but a NoneType was given",)),
    ],
)
def test_selectors(running, kind, given, error, words, device):
    if isinstance(given, torch.Tensor) and given.device.type != "meta":
        given = given.to(device)
    for name in READS[kind]:
        with refused(error, "selector", *words):
            getattr(running, name)(given)


@every_kind
@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("dt", 0.0, ValueError, "greater than 0, but is 0.0"),
        ("dt", NAN, ValueError, "finite, but is nan"),
        ("dt", "1", TypeError, "a number, but is '1'"),
        ("delay", -1.0, ValueError, "at least 0, but is -1.0"),
        ("delay", INF, ValueError, "finite, but is inf"),
        ("batchsz", 0, ValueError, "positive integer, but is 0"),
        ("batchsz", 2.0, TypeError, "positive integer, but is 2.0"),
        ("spike_charge", 0.0, ValueError, "nonzero, but is 0.0"),
        ("spike_charge", torch.ones(2, 2), ValueError, "does not broadcast to (2, 3)"),
        ("backend", "numpy", tritonsyn.BackendError, "'numpy', but must be one of"),
        ("spike", torch.zeros(2, 3), ValueError, "has shape (2, 3), but must have (2, 2, 3)"),
        ("spike", True, TypeError, "must be a tensor, but a bool was given"),
    ],
)
def test_setters(running, name, value, error, words):
    shown = {"spike": "value"}.get(name, name)
    with refused(error, shown, words):
        setattr(running, name, value)


@every_kind
def test_component_setters(running, kind, device):
    for name in COMPONENTS[kind]:
        with refused(ValueError, "has shape (2, 3), but must have (2, 2, 3)"):
            setattr(running, name, torch.zeros(2, 3, device=device))
        with refused(TypeError, "must be a tensor, but a float was given"):
            setattr(running, name, 1.0)
        with refused(TypeError, "bool, integer or floating, but is torch.complex64"):
            setattr(running, name, torch.zeros(2, 2, 3, dtype=torch.complex64, device=device))


@every_kind
def test_time_constant_setters(running, kind):
    names = list(PHYSICS[kind])[1:]
    for name in names:
        before = getattr(running, name)
        for value, words in [(0.0, "greater than 0, but is 0.0"), (NAN, "finite, but is nan")]:
            with refused(ValueError, name, words):
                setattr(running, name, value)
            assert getattr(running, name) == before
    if kind == "double":
        for name, value in [("tc_decay", 2.0), ("tc_rise", 6.0), ("tc_rise", torch.tensor(7.0))]:
            with refused(ValueError, "tc_decay must be greater than tc_rise", float(value)):
                setattr(running, name, value)
        assert (running.tc_decay, running.tc_rise) == (6.0, 2.0)


@every_kind
def test_what_has_no_setter(running, kind):
    for name in ("shape", "count", "batchedshape"):
        with pytest.raises(AttributeError):
            setattr(running, name, 1)


@every_kind
def test_learned_constants_are_checked_on_demand(kind):
    """No step reads them on the host; ``check_constants`` does."""
    for name in PHYSICS[kind]:
        learned = nn.Parameter(torch.full((3,), PHYSICS[kind][name]))
        synapse = make(kind, **{name: learned})
        synapse.check_constants()
        with torch.no_grad():
            learned[1] = 0.0
        with refused(ValueError, name, "but holds 0.0"):
            synapse.check_constants()


# -- saved states that do not fit -----------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    ("options", "theirs", "ours"),
    [
        ({"delay": 4.0}, [1.0, 4.0], [1.0, 2.0]),
        ({"delay": 0.0}, [1.0, 0.0], [1.0, 2.0]),
        ({"step_time": 0.5}, [0.5, 2.0], [1.0, 2.0]),
        ({"shape": (3, 2)}, (3, 2, 3, 2), (3, 2, 2, 3)),
        ({"shape": 6}, (3, 2, 6), (3, 2, 2, 3)),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_state_of_another_size(running, kind, options, theirs, ours, strict):
    other = make(kind, **{"shape": (2, 3), "delay": 2.0, "batch_size": 2, **options})
    with refused(RuntimeError, f"{RECORDS[kind][0]}.", theirs, ours):
        running.load_state_dict(other.state_dict(), strict=strict)


@every_kind
def test_state_with_one_record_of_another_size(running, kind):
    """Nothing of it is taken over, also where the records before it fit."""
    state = make(kind, (2, 3), delay=2.0, batch_size=2).state_dict()
    state["spike_.storage"] = torch.ones(4, 2, 2, 3, dtype=torch.bool)
    with refused(RuntimeError, "spike_.storage", (4, 2, 2, 3), (3, 2, 2, 3)):
        running.load_state_dict(state)


@every_kind
@pytest.mark.parametrize("pointer", [3, -1, 100])
def test_state_with_a_pointer_outside(running, kind, pointer):
    state = running.state_dict()
    state["spike_.pointer"] = torch.tensor(pointer)
    with refused(RuntimeError, "spike_.pointer", pointer, "slots 0 to 2"):
        running.load_state_dict(state)


@every_kind
def test_state_of_another_kind_of_record(running, kind):
    state = running.state_dict()
    state["spike_.storage"] = state["spike_.storage"].float()
    with refused(RuntimeError, "spike_.storage", "torch.float32", "torch.bool"):
        running.load_state_dict(state)


@every_kind
@pytest.mark.parametrize("key", ["spike_.storage", "spike_.pointer"])
def test_state_with_something_missing(running, key):
    state = running.state_dict()
    del state[key]
    with refused(RuntimeError, "Missing key", key):
        running.load_state_dict(state)


@every_kind
def test_state_with_something_unknown(running):
    state = running.state_dict()
    state["weight"] = torch.ones(1)
    with refused(RuntimeError, "Unexpected key", "weight"):
        running.load_state_dict(state)


def test_state_of_the_other_synapse():
    single, double = make("single"), make("double")
    for a, b in [(single, double), (double, single)]:
        with refused(RuntimeError, "Missing key", "Unexpected key"):
            a.load_state_dict(b.state_dict())


# -- not a number ---------------------------------------------------------------------------------


@every_kind
def test_nan_input_stays_with_its_synapse(kind, each_backend, device):
    """In its element of the batch alone, until the clear; a NaN is not zero, so it spikes."""
    synapse, clean = (make(kind, 4, delay=2.0, batch_size=2, device=device) for _ in range(2))
    x = uniform(2, 4, seed=1).float().to(device)
    poisoned = x.clone()
    poisoned[1, 2] = NAN
    bad = poisoned.isnan()
    for given, reference in [(poisoned, x), (x, x), (x, x)]:
        y, expected = synapse(given), clean(reference)
        # What enters an alpha function is felt a step later.
        assert y[bad].isnan().all() or (kind == "alpha" and given is poisoned)
        assert torch.equal(y[~bad], expected[~bad])
    assert synapse.spike_.read(3)[bad].all()
    sel = torch.full((2, 4), 1.5, device=device)
    assert torch.equal(synapse.current_at(sel).isnan(), bad)
    synapse.clear()
    assert not synapse(x).isnan().any()


@every_kind
@pytest.mark.parametrize(
    ("delay", "overbound"), [(0.0, None), (0.0, True), (2.0, None), (2.0, False), (2.0, True)]
)
def test_nan_time(kind, delay, overbound, each_backend, device):
    """NaN for currents and False for spikes, whatever the overbound values are."""
    current_overbound = None if overbound is None else float(overbound)
    synapse = make(
        kind, 3, delay=delay, device=device,
        current_overbound=current_overbound, spike_overbound=overbound,
    )  # fmt: skip
    for _ in range(3):
        synapse(torch.ones(1, 3, device=device))
    sel = torch.full((1, 3, 2), delay / 2, device=device)
    expected = {name: getattr(synapse, name)(sel) for name in READS[kind]}
    sel[0, 1, 0] = NAN
    bad = sel.isnan()
    for name, clean in expected.items():
        value = getattr(synapse, name)(sel)
        assert torch.equal(value[~bad], clean[~bad])
        assert not value[bad].any() if name == "spike_at" else value[bad].isnan().all()


@every_kind
def test_infinite_time_is_overbound(kind, each_backend, device):
    sel = torch.tensor([[INF, -INF, 1.0]], device=device)
    for overbound in (7.0, None):
        synapse = make(
            kind, 3, delay=1.0, current_overbound=overbound, spike_overbound=None, device=device
        )  # fmt: skip
        synapse(torch.ones(1, 3, device=device))
        newest = synapse(torch.zeros(1, 3, device=device))
        y = synapse.current_at(sel)
        limit = synapse.current_.read(2) if kind == "single" else torch.zeros(1, 3, device=device)
        expected = [overbound, overbound] if overbound else [limit[0, 0], newest[0, 1]]
        assert torch.equal(y[0], torch.tensor([*expected, limit[0, 2]], device=device))
        spike = torch.tensor([[True, False, True]], device=device)
        assert torch.equal(synapse.spike_at(sel), spike)


@every_kind
def test_nan_time_gives_no_gradient_to_the_record(kind, each_backend, device):
    x = torch.ones(1, 3, device=device, requires_grad=True)
    synapse = make(kind, 3, delay=2.0, device=device)
    synapse(x)
    synapse(torch.zeros(1, 3, device=device))
    sel = torch.tensor([[0.5, NAN, 0.5]], device=device, requires_grad=True)
    value = synapse.current_at(sel)
    dx, dsel = torch.autograd.grad(value[:, ::2].sum(), (x, sel))
    assert dx.isfinite().all() and (dx[0, 1] == 0)
    assert (dsel[0, ::2] != 0).all() and dsel[0, 1] == 0


# -- errors that say what to do -------------------------------------------------------------------


def test_what_takes_sequences_of_a_functional_step():
    record, half = torch.zeros(3, 2, 3), torch.tensor(0.5)
    ring = tritonsyn.functional.Ring([record], [0], record != 0, 0)
    with refused(ValueError, "x has shape (7, 2, 3), but must have (2, 3); exp_scan"):
        tritonsyn.functional.step(torch.zeros(7, 2, 3), ring, half, [half])
    packed = tritonsyn.functional.pack_spikes(torch.zeros(7, 2, 3))
    with refused(TypeError, "x must be a tensor, but is a sequence of spikes; exp_scan"):
        tritonsyn.functional.step(packed, ring, half, [half])


def assert_a_forgotten_clear_is_named(module, train):
    """By the second backward pass; after either remedy training goes on."""
    train()
    with refused(RuntimeError, "still holds it", "clear()", "detach_state()"):
        train()
    for forget in (module.clear, module.detach_state):
        forget()
        train()


LOOPS = {
    "steps": lambda synapse, x, sel: synapse(x),
    "scan": lambda synapse, x, sel: synapse.scan(x.expand(3, *x.shape)),
    "reads": lambda synapse, x, sel: (synapse(x), synapse.current_at(sel))[1],
    "mixed": lambda synapse, x, sel: (synapse.scan(x[None]), synapse(x))[1],
}


@every_kind
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_forgotten_clear_is_named(kind, learned, loop, device):
    physics = PHYSICS[kind]
    if learned:
        physics = {n: nn.Parameter(torch.tensor(v, device=device)) for n, v in physics.items()}
    weight = nn.Parameter(torch.ones(1, 3, device=device))
    synapse = make(kind, delay=2.0, device=device, **physics)
    sel = torch.full((1, 3), 0.5, device=device)

    def train():
        LOOPS[loop](synapse, 2.0 * weight, sel).sum().backward()

    assert_a_forgotten_clear_is_named(synapse, train)


@every_kind
@pytest.mark.parametrize("run", ["forward", "scan"])
@pytest.mark.parametrize("strategy", ["shift", "gemm", "auto"])
def test_a_forgotten_clear_of_a_layer_is_named(kind, run, strategy, device):
    constants = [nn.Parameter(torch.tensor(v, device=device)) for v in PHYSICS[kind].values()]
    made = CLASSES[kind].partialconstructor(*constants)
    layer = tritonsyn.DelayedLinear(
        3, 2, 1.0, synapse=made, delay=2.0, strategy=strategy, device=device
    )
    x = torch.ones((1, 3) if run == "forward" else (4, 1, 3), device=device)

    def train():
        getattr(layer, run)(x).sum().backward()

    assert_a_forgotten_clear_is_named(layer, train)


# -- numbers, flags and properties ----------------------------------------------------------------


@pytest.mark.parametrize("value", [1e308, 1e-320, torch.finfo(torch.float32).tiny / 2])
def test_a_step_that_float32_cannot_hold(value):
    for make_one in (
        lambda: make("single", step_time=value),
        lambda: setattr(make("single"), "dt", value),
        lambda: tritonsyn.RecordTensor(value, 0.0, torch.zeros(1)),
    ):
        with refused(ValueError, "must be within float32, 1.175e-38 to 3.403e+38, but is", value):
            make_one()


def test_a_parameter_goes_to_the_property(device):
    """Torch would register it beside the property, and fail."""
    weight = nn.Parameter(torch.full((1, 3), 2.0, device=device))
    for kind in CLASSES:
        for name in COMPONENTS[kind]:
            synapse = make(kind, delay=2.0, device=device)
            setattr(synapse, name, weight)
            assert torch.equal(getattr(synapse, name), weight)
            assert name not in dict(synapse.named_parameters())
            getattr(synapse, name).sum().backward()
            assert torch.equal(weight.grad, torch.ones_like(weight))
            weight.grad = None
    synapse.spike = nn.Buffer(weight.detach())
    assert synapse.spike.all() and "spike" not in dict(synapse.named_buffers())
    record = tritonsyn.RecordTensor(1.0, 2.0, torch.zeros(1, 3, device=device))
    record.latest = weight
    assert torch.equal(record.latest, weight) and record.pointer == 1
    del record.latest
    assert record.pointer == 0
    record.value = nn.Parameter(torch.full((2, 1, 3), 4.0, device=device))
    assert torch.equal(record.value, torch.full((2, 1, 3), 4.0, device=device))
    assert not dict(record.named_parameters())
    for module, name in ((record, "dt"), (synapse, "dt"), (synapse, "delay")):
        with refused(ValueError, name, "requires grad, but only its value counts here"):
            setattr(module, name, nn.Parameter(torch.tensor(2.0)))
    with pytest.raises(AttributeError):
        synapse.shape = weight
    with pytest.raises(AttributeError):
        del synapse.current


def test_an_initialiser_is_used_or_refused():
    class Empty(list):
        def __call__(self, tensor):
            return nn.init.constant_(tensor, 3.0)

    physics = CLASSES["single"].partialconstructor(10.0, 5.0)
    layer = tritonsyn.DelayedLinear(2, 2, 1.0, synapse=physics, delay=3.0, weight_init=Empty())
    assert torch.equal(layer.weight, torch.full((2, 2), 3.0))
    for value in (torch.ones(2, 2), 0, ""):
        with refused(TypeError, "weight_init must be a function of a tensor"):
            tritonsyn.DelayedLinear(2, 2, 1.0, synapse=physics, delay=3.0, weight_init=value)


def test_a_meta_constant_is_refused_and_the_old_one_stays():
    synapse = make("single")
    for value in (torch.ones(3, device="meta"), nn.Parameter(torch.ones(3, device="meta"))):
        with refused(ValueError, "time_constant is on meta"):
            synapse.time_constant = value
        with refused(ValueError, "time_constant is on meta"):
            make("single", time_constant=value)
    assert synapse.time_constant == 5.0
    assert make("single", time_constant=torch.ones(3, device="meta"), device="meta")


@every_kind
def test_wide_unsigned_inputs_count(kind):
    x = torch.tensor([[0, 1, 300]])
    expected = make(kind)(x)
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(make(kind)(x.to(dtype)), expected)
        assert torch.equal(make(kind).scan(x[None].to(dtype))[0], expected)
