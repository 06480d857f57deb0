"""Every argument of the public interface against a list of wrong values.

Whatever is refused is refused by tritonsyn's own code, in words that name the argument, and leaves
the state and the given tensors as they were, bit for bit.
"""

import copy
import linecache
import math
import traceback
import warnings
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from synapses import CLASSES, COMPONENTS, PHYSICS, make
from torch import nn

import tritonsyn
from tritonsyn import (
    BackendError,
    DelayedConv1d,
    DelayedConv2d,
    DelayedLinear,
    RecordTensor,
    functional,
    init,
    parametrizations,
    regularizers,
)
from tritonsyn.functional import PackedSpikes, ReadRule, Ring

HOME = Path(tritonsyn.__file__).parent
ALLOWED = (TypeError, ValueError, IndexError, RuntimeError, BackendError)


def odd_tensors():
    """Tensors that hardly any argument takes, of the shape that most tensors here have."""
    ones = torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these are prototypes
        return {
            "float8": ones.to(torch.float8_e4m3fn),
            "complex": ones.cfloat(),
            "sparse": ones.to_sparse(),
            "csr": ones.to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(ones, 1.0, 0, torch.quint8),
            "meta": ones.to("meta"),
            "nested": torch.nested.nested_tensor([ones[0], ones[0]]),
            "uint16": ones.to(torch.uint16),
            "uint64": ones.to(torch.uint64),
            "float8 0-d": ones[0, 0].to(torch.float8_e5m2),
            "complex 0-d": torch.tensor(1j),
            "sparse 0-d": torch.tensor(1.0).to_sparse(),
            "meta 0-d": torch.ones((), device="meta"),
            "bool 0-d": torch.tensor(True),
            "0-d with grad": torch.tensor(2.0, requires_grad=True),
            "parameter": nn.Parameter(torch.ones(3)),
            "NaN 0-d": torch.tensor(math.nan),
            "empty": torch.ones(0),
            "no rows": torch.ones(0, 3),
            "transposed": torch.ones(3, 2).t(),
            "five axes": torch.ones(1, 1, 2, 2, 3),
        }


WRONG = {
    "None": None, "text": "x", "bytes": b"x", "dict": {"a": 1}, "set": {1}, "object": object(),
    "type": int, "complex number": 1j, "huge": 10**400, "very huge": 10**5000, "-huge": -(10**400),
    "huge fraction": Fraction(10**400), "1e308": 1e308, "1e-320": 1e-320, "inf": math.inf,
    "nan": math.nan, "-1": -1, "0": 0, "2**62": 2**62, "0.5": 0.5, "True": True, "list": [],
    "texts": ["a"], "numbers": (1.0, 2.0), "nones": [None], "array": numpy.ones((2, 3)),
    "array 0-d": numpy.array(1.0), "numpy float": numpy.float32(-1.0), "numpy int": numpy.int64(-3),
    "numpy bool": numpy.bool_(True), "function": math.sqrt, "module": nn.Linear(1, 1),
    **odd_tensors(),
}  # fmt: skip

X, RECORD, SPIKES = torch.ones(2, 3), torch.ones(4, 2, 3), torch.ones(4, 2, 3) > 0
ONE = torch.tensor(0.5)


def of_function(function, **right):
    """An entry for each argument: calls the function with one of them wrong."""

    def call(name):
        return lambda given, value: function(**{**given, name: value})

    def fresh():
        return copy.deepcopy(right)

    return {f"{function.__name__} {name}": (fresh, call(name), name) for name in right}


def a_ring(**changed):
    return Ring(**{
        "components": [RECORD.clone()], "pointers": [1], "spikes": SPIKES.clone(),
        "spike_pointer": 1, "arrivals": None, **changed,
    })  # fmt: skip


RULE = {"mode": "expdecay", "step": 1.0, "limit": 3.0, "tolerance": 0.0, "overbound": 0.0}
SCAN = {"x": torch.ones(5, 2, 3), "gain": 1.0, "decay": 0.5, "initial": None, "dtype": None,
        "backend": None}  # fmt: skip
LAYER = {
    "x": torch.ones(5, 2, 3), "weight": torch.ones(1, 3), "delay": torch.ones(1, 3), "bias": None,
    "decay": 0.5, "gain": 1.0, "step_time": 1.0, "max_delay": 2.0, "initial": None,
    "strategy": "auto", "dtype": None, "backend": None,
}  # fmt: skip
SELECT = {"records": [RECORD], "sel": X, "rates": [ONE], "pointers": [1], "rule": ReadRule(**RULE)}
SYNAPSE = {
    "shape": 3, "step_time": 1.0, "delay": 2.0, "spike_interp_mode": "previous", "interp_tol": 0.0,
    "current_overbound": 0.0, "spike_overbound": False, "batch_size": 2, "inplace": False,
    "device": None, "dtype": None, "capturable": False, "backend": None,
}  # fmt: skip
INTERP = {"prev_data": X, "next_data": X, "sample_at": X, "step_time": 1.0}


def select_by(name):
    return lambda given, value: functional.select(
        **{**SELECT, "rule": ReadRule(**{**RULE, name: value})}
    )


def step_with(name):
    return lambda given, value: functional.step(X, a_ring(**{name: value}), ONE, [ONE])


def a_record():
    record = RecordTensor(1.0, 3.0, torch.zeros(2, 3), inclusive=True)
    record.push(torch.rand(2, 3))
    return record


def a_synapse(kind):
    synapse = make(kind, 3, delay=2.0, batch_size=2)
    synapse(torch.rand(2, 3))
    return synapse


def a_layer():
    layer = DelayedLinear(
        3, 1, 1.0, synapse=CLASSES["single"].partialconstructor(1.0, 5.0), delay=2.0,
        batch_size=2, bias=True,
    )  # fmt: skip
    layer(torch.rand(2, 3))
    return layer


def a_delay():
    layer = tritonsyn.Delay(3, 1.0, delay=2.0, interp="gaussian", batch_size=2)
    layer(torch.rand(2, 3))
    return layer


def a_convolution():
    physics = CLASSES["single"].partialconstructor(1.0, 5.0)
    layer = DelayedConv1d(3, 2, 2, 1.0, synapse=physics, delay=2.0)
    layer(torch.rand(2, 3, 4))
    return layer


def setter(name):
    return lambda module, value: setattr(module, name, value)


RECORD_CALLS = {
    "dt": setter("dt"), "duration": setter("duration"), "inclusive": setter("inclusive"),
    "value": setter("value"), "latest": setter("latest"),
    "push obs": lambda r, v: r.push(v), "push inplace": lambda r, v: r.push(X, v),
    "write obs": lambda r, v: r.write(v), "write offset": lambda r, v: r.write(X, v),
    "write inplace": lambda r, v: r.write(X, 0, v),
    "read offset": lambda r, v: r.read(v),
    "readrange length": lambda r, v: r.readrange(v),
    "readrange offset": lambda r, v: r.readrange(2, v),
    "readrange forward": lambda r, v: r.readrange(2, 1, v),
    "writerange obs": lambda r, v: r.writerange(v),
    "writerange offset": lambda r, v: r.writerange(X[..., None], v),
    "writerange forward": lambda r, v: r.writerange(X[..., None], 0, v),
    "writerange inplace": lambda r, v: r.writerange(X[..., None], 0, False, v),
    "extend rows": lambda r, v: r.extend(v), "extend steps": lambda r, v: r.extend(X[None], v),
    "extend inplace": lambda r, v: r.extend(X[None], 1, v),
    "history length": lambda r, v: r.history(v), "incr pos": lambda r, v: r.incr(v),
    "decr pos": lambda r, v: r.decr(v), "align index": lambda r, v: r.align(v),
    "load_state": lambda r, v: r.load_state(v),
    "reset fill": lambda r, v: r.reset(v), "select time": lambda r, v: r.select(v),
    "select interp": lambda r, v: r.select(X, v),
    "select tolerance": lambda r, v: r.select(X, tolerance=v),
    "select offset": lambda r, v: r.select(X, offset=v),
    "select interp_kwargs": lambda r, v: r.select(X, "expdecay", interp_kwargs=v),
    "select time_constant": lambda r, v: r.select(
        X, "expdecay", interp_kwargs={"time_constant": v}
    ),
    "select rate_constant": lambda r, v: r.select(
        X, "expratedecay", interp_kwargs={"rate_constant": v}
    ),
}  # fmt: skip
SHOWN = {"latest": "value", "push obs": "value", "write obs": "value", "spike": "value",
         "current": "value", "pos_current": "value", "neg_current": "value", "pointers": "pointer",
         "spike_pointer": "pointer", "load_state": "state"}  # fmt: skip
"""What an error calls an argument that has another name below."""
BOTH = {
    "push record": "value",
    "select_scan per_step": "sel",
    "delayed_linear max_delay": "delay",
    "delayed_linear weight": "delay",
    "set_backend name": "backend",
}
"""What an error may name besides, where two arguments have to fit."""
FUNCTIONS = ("synapse", "weight_init", "bias_init", "delay_init", "interp")
"""Arguments that are called, and then raise whatever they raise."""


def entries():
    """``(object, call of it with a value, name)`` by argument."""
    found = {
        **of_function(functional.push, record=RECORD, value=X, slot=1, backend=None),
        **of_function(functional.read, record=RECORD, slot=1),
        **of_function(
            functional.step, x=X, ring=a_ring(), gain=ONE, decays=[ONE], graph=True, backend=None
        ),
        **{f"step coupling {n}": (dict, c, "coupling") for n, c in {
            "of two": lambda given, value: functional.step(
                X, a_ring(components=[RECORD.clone()] * 2, pointers=[1, 1]), ONE, [ONE],
                coupling=ONE if value is None else value,
            ),
        }.items()},
        **{f"ring {name}": (dict, step_with(name), name) for name in Ring._fields},
        **of_function(functional.select, **SELECT, backend=None),
        **{f"rule {name}": (dict, select_by(name), name) for name in RULE},
        **of_function(
            functional.select_scan, sequences=[torch.ones(5, 2, 3)], sel=X, rates=[ONE],
            rule=ReadRule(**RULE), steps=2, per_step=False, backend=None,
        ),
        **of_function(functional.pack_spikes, x=SPIKES, backend=None),
        **of_function(functional.unpack_spikes, packed=functional.pack_spikes(SPIKES)),
        "packed words": (dict, lambda given, value: functional.unpack_spikes(
            PackedSpikes(value, (4, 2, 3))), "words"),
        "packed shape": (dict, lambda given, value: functional.unpack_spikes(
            PackedSpikes(torch.zeros(4, 2, 1, dtype=torch.int32), value)), "shape"),
        **of_function(functional.exp_scan, **SCAN),
        **of_function(functional.double_exp_scan, **SCAN, rise=0.2),
        **of_function(functional.alpha_scan, **SCAN, ratio=0.2),
        **of_function(functional.delayed_linear, **LAYER, rise=None, ratio=None),
        **of_function(functional.interp_linear, **INTERP),
        **of_function(functional.interp_nearest, **INTERP),
        **of_function(functional.interp_expdecay, **INTERP, time_constant=2.0),
        **of_function(functional.interp_expratedecay, **INTERP, rate_constant=2.0),
        **of_function(
            RecordTensor, step_time=1.0, duration=2.0, value=X, inclusive=False, capturable=False,
            carried=False, backend=None,
        ),
        **of_function(
            DelayedLinear, in_features=3, out_features=2, step_time=1.0, delay=2.0, bias=True,
            synapse=CLASSES["single"].partialconstructor(1.0, 5.0), batch_size=1,
            weight_init=None, bias_init=None, delay_init=None, device=None, dtype=None,
            strategy="auto", spread=0.0, capturable=False, backend=None, mask=None, fan_in=None,
        ),
        **of_function(
            DelayedConv2d, in_channels=2, out_channels=4, kernel_size=2, step_time=1.0, delay=2.0,
            synapse=CLASSES["single"].partialconstructor(1.0, 5.0), stride=1, padding=0, dilation=1,
            groups=1, padding_mode="zeros", delays="connection", strategy="auto",
        ),
        **of_function(
            tritonsyn.Delay, shape=3, step_time=1.0, delay=2.0, interp="linear", sigma=None,
            min_delay=0.0, delay_shape=None, delay_init=None, batch_size=2, device=None,
            dtype=None, capturable=False, backend=None,
        ),
        **of_function(tritonsyn.set_backend, name="auto"),
        **of_function(init.constant, value=1.0),
        **of_function(init.uniform, low=0.0, high=5.0),
        **of_function(init.normal, mean=1.0, std=2.0, low=0.0, high=5.0),
        **of_function(init.log_uniform, low=0.1, high=5.0),
        **of_function(parametrizations.Bounded, low=0.0, high=5.0),
        **of_function(parametrizations.WholeSteps, step_time=1.0),
        **of_function(parametrizations.Positive, low=0.0),
        **{f"assign {p}": (dict, lambda given, value, p=p: p.right_inverse(value), "value")
           for p in (parametrizations.Bounded(0.0, 5.0), parametrizations.WholeSteps(1.0),
                     parametrizations.Positive())},
        **of_function(regularizers.whole_steps, delay=X, step_time=1.0),
        **{f"regularizer {f.__name__}": (dict, lambda given, value, f=f: f(value), "delay")
           for f in (regularizers.l1, regularizers.l2, regularizers.variance)},
        **of_function(
            tritonsyn.parameter_groups, model=torch.nn.Linear(2, 2), lr=0.1, delay_lr=0.1,
            constant_lr=0.1, weight_decay=0.1,
        ),
    }  # fmt: skip
    for kind, cls in CLASSES.items():
        found |= of_function(cls, **SYNAPSE, **PHYSICS[kind])
        names = [*PHYSICS[kind], "dt", "delay", "batchsz", "inplace", "backend", "spike"]
        names += COMPONENTS[kind]
        calls = {f"set {name}": (name, setter(name)) for name in names}
        calls["forward"] = "x", lambda s, v: s(v)
        calls["forward backend"] = "backend", lambda s, v: s(X, backend=v)
        calls["scan"] = "x", lambda s, v: s.scan(v)
        calls["load_state"] = "state", lambda s, v: s.load_state(v)
        calls["scan lengths"] = "lengths", lambda s, v: s.scan(X.unsqueeze(0), v)
        calls["advance"] = "x", lambda s, v: s.advance(v)
        calls["scan_at"] = "selector", lambda s, v: s.scan_at(X.unsqueeze(0), v)
        calls["clear"] = "mask", lambda s, v: s.clear(v)
        calls["current_at"] = "selector", lambda s, v: s.current_at(v)
        calls["spike_at"] = "selector", lambda s, v: s.spike_at(v)
        for what, (name, call) in calls.items():
            found[f"{kind} {what}"] = (lambda kind=kind: a_synapse(kind)), call, name
    for what, call in RECORD_CALLS.items():
        found[f"record {what}"] = a_record, call, what.split()[-1]
    for name in ("max_delay", "dt", "batchsz", "backend", "spread"):
        found[f"layer set {name}"] = a_layer, setter(name), name.removeprefix("max_")
    for name in ("size", "batchsz", "strategy", "spread"):
        found[f"convolution set {name}"] = a_convolution, setter(name), name
    for name in ("max_delay", "min_delay", "dt", "batchsz", "backend", "interp", "sigma"):
        found[f"delay set {name}"] = a_delay, setter(name), name.removeprefix("max_")
    found["delay forward"] = a_delay, lambda layer, value: layer(value), "x"
    found["delay scan"] = a_delay, lambda layer, value: layer.scan(value), "x"
    found["delay clear"] = a_delay, lambda layer, value: layer.clear(value), "mask"
    found["convolution forward"] = a_convolution, lambda layer, value: layer(value), "x"
    found["convolution scan"] = a_convolution, lambda layer, value: layer.scan(value), "x"
    found["convolution clear"] = a_convolution, lambda layer, value: layer.clear(value), "mask"
    found["layer forward"] = a_layer, lambda layer, value: layer(value), "x"
    found["layer load_state"] = a_layer, lambda m, v: m.load_state(v), "state"
    found["layer scan lengths"] = a_layer, lambda m, v: m.scan(X.unsqueeze(0), v), "lengths"
    found["layer scan"] = a_layer, lambda layer, value: layer.scan(value), "x"
    return found


ENTRIES = entries()


def state(thing):
    """What must not change, in a form that compares."""
    if isinstance(thing, nn.Module):
        whole = {**thing.state_dict(), **dict(thing.named_parameters())}
        return {
            n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in whole.items()
        }
    return copy.deepcopy(thing)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return True if callable(a) else a == b


def complaint(error, names):
    """What is wrong with an error; None if nothing is."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not isinstance(error, ALLOWED) or isinstance(error, NotImplementedError):
        return "wrong kind"
    if HOME not in Path(last.filename).parents:
        return f"raised in {last.filename}"
    if not linecache.getline(last.filename, last.lineno).strip().startswith("raise"):
        return f"not raised but passed on: {last.line}"
    return None if any(name in str(error) for name in names) else f"does not name {names}"


@pytest.mark.parametrize("argument", ENTRIES)
def test_wrong_values(argument, monkeypatch):
    monkeypatch.setattr(tritonsyn.backend, "_default", tritonsyn.get_backend())
    begin, call, name = ENTRIES[argument]
    name = SHOWN.get(argument.removeprefix("record "), SHOWN.get(name, name))
    names = (name, BOTH.get(argument, name))
    found = []
    for what, value in WRONG.items():
        thing = begin()
        before = state(thing)
        try:
            call(thing, value)
        except Exception as error:
            if callable(value) and name in FUNCTIONS:
                continue
            if name == "device" and isinstance(value, int):
                continue  # the number of a GPU, which torch may not find
            if said := complaint(error, names):
                found.append(f"{what}: {said}: {type(error).__name__}: {str(error)[:200]}")
            if not equal(before, state(thing)):
                found.append(f"{what}: the state has changed")
    assert not found, "\n".join(found)
