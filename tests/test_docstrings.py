"""Docstrings of all that is public: what each argument is, and what comes back."""

import doctest
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tritonsyn

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"

MODULES = {
    "tritonsyn": None,
    "tritonsyn.functional": None,
    "tritonsyn.init": None,
    "tritonsyn.parametrizations": None,
    "tritonsyn.regularizers": None,
    "tritonsyn.distributed": None,
    "tritonsyn.export": None,
    "tritonsyn.testing": None,
    "tritonsyn.nir": "nir",
    "tritonsyn.plot": "matplotlib",
    "tritonsyn.interop.inferno": "inferno",
    "tritonsyn.interop.norse": "norse",
    "tritonsyn.interop.rockpool": "rockpool",
    "tritonsyn.interop.sinabs": "sinabs",
    "tritonsyn.interop.snntorch": "snntorch",
    "tritonsyn.interop.spikingjelly": "spikingjelly",
}
"""Each module that is public, and the library that it needs."""

INTERNAL = {
    # torch.nn.Module prints by it
    "extra_repr",
    # load_state_dict asks them before anything is loaded
    "check_state", "own_keys",
    # layers and adapters ask them of synapses, and runs of layers
    "again", "check_at_home", "check_sequence", "check_step", "coefficients",
    "component_records", "delay_rule", "delayed", "follow", "planned", "project", "roll_up",
    "scan_projected", "step", "step_axes", "taps", "unroll",
    # modules ask them of their records
    "at_rest", "blank", "cursor", "described", "load", "newest", "place", "replace_storage", "rest",
    "restart", "times",
}  # fmt: skip
"""Members without an underscore that are for the package itself. The reference leaves them out."""

EXEMPT = {
    # it takes the arguments of its class
    "partialconstructor",
    # convolutions refuse them, whatever they are given
    "DelayedConv1d.ahead", "DelayedConv1d.unrolled", "DelayedConv2d.ahead",
    "DelayedConv2d.unrolled",
}  # fmt: skip
"""Methods whose arguments need no description."""

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Note):")
ENTRY = re.compile(r"    (\w[\w, ]*): ")
WITH_ENTRIES = ("Args", "Attributes", "Raises")


def exported(module: Any) -> list[str]:
    """The names of a module; an adapter's are its function and its classes."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    made = {name: value for name, value in vars(module).items() if name[0] != "_"}
    return [n for n, v in made.items() if getattr(v, "__module__", "") == module.__name__]


def members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """What a class or its bases in this package define, without what is internal."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("tritonsyn")]
    for key in sorted({key for base in ours for key in vars(base)}):
        if key.startswith("_") or key in INTERNAL:
            continue
        found = inspect.getattr_static(cls, key)
        if inspect.isroutine(found) or isinstance(found, property):
            yield f"{name}.{key}", found


def public(module: str) -> dict[str, Any]:
    """All that users call, make or read of a module, by name."""
    library = MODULES[module]
    if library is not None:
        pytest.importorskip(library)
    home, found = import_module(module), {}
    for name in exported(home):
        value = getattr(home, name)
        if inspect.isclass(value):
            found |= {name: value, **dict(members(name, value))}
        elif callable(value):
            found[name] = value
    return found


def parsed(doc: str) -> dict[str, list[str]]:
    """The entries or paragraphs of each section; the section of those before all is ''."""
    sections: dict[str, list[str]] = {"": []}
    name, fresh = "", True
    for line in doc.splitlines():
        items = sections[name]
        if head := SECTION.fullmatch(line):
            name, fresh = head[1], True
            sections[name] = []
        elif not line.strip():
            fresh = True
        elif fresh or (name in WITH_ENTRIES and ENTRY.match(line)):
            items.append(line)
            fresh = False
        else:
            items[-1] += f" {line.strip()}"
    return sections


def returned(annotation: Any) -> str | None:
    """The section that has to say what comes back; None where nothing does."""
    if get_origin(annotation) is Iterator:  # of a context manager
        return None if get_args(annotation)[0] in (None, type(None)) else "Yields"
    return None if annotation in (None, inspect.Signature.empty) else "Returns"


def faults(value: Any) -> Iterator[str]:
    """What is wrong with one docstring."""
    doc = inspect.getdoc(value)
    if not doc:
        yield "there is none"
        return
    sections = parsed(doc)
    for section, items in sections.items():
        for item in items:
            if section in WITH_ENTRIES and not ENTRY.match(item):
                yield f"{section} has what is no entry: {item}"
            if section != "Example" and ".. math::" not in item and item[-1] not in ".:":
                yield f"{section} has what does not end: {item}"
    if isinstance(value, property):
        return
    is_tuple = inspect.isclass(value) and issubclass(value, tuple)
    if inspect.isclass(value) and not is_tuple:
        value = value.__init__
        if not getattr(value, "__module__", "").startswith("tritonsyn"):
            return  # of an exception, or of an adapter that a function makes
    signature = inspect.signature(getattr(value, "__func__", value))
    taken = {
        name for name in signature.parameters if name not in ("self", "cls") and name[0] != "_"
    }
    where = "Attributes" if is_tuple else "Args"
    described = [match[1] for item in sections.get(where, ()) if (match := ENTRY.match(item))]
    for name in sorted(taken.symmetric_difference(described)):
        yield f"{where} {'lacks' if name in taken else 'has an unknown'} {name}"
    if len(described) != len(set(described)):
        yield f"{where} has an entry twice: {described}"
    back = None if is_tuple else returned(signature.return_annotation)
    if taken or len(doc.splitlines()) > 1:  # one line may say all
        for section in ("Returns", "Yields"):
            if (section in sections) != (section == back):
                yield f"{section} is {'missing' if section == back else 'there for nothing'}"


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_described(module):
    found = [
        f"{name}: {fault}"
        for name, value in public(module).items()
        if not EXEMPT & {name, name.rsplit(".", 1)[-1]}
        for fault in faults(value)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", [name for name in MODULES if MODULES[name] is None])
def test_examples_give_what_they_show(module):
    names = {"torch": torch, "nn": nn, "parametrize": parametrize, "tritonsyn": tritonsyn}
    names |= {name: getattr(tritonsyn, name) for name in tritonsyn.__all__}
    names |= vars(import_module(module))
    for name, value in public(module).items():
        doc = inspect.getdoc(value) or ""
        test = doctest.DocTestParser().get_doctest(doc, dict(names), name, None, None)
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert not failed, "".join(said)


def test_the_reference_leaves_out_what_is_internal():
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    shown = re.findall(r"^::: tritonsyn\.(\w+)\.(\w+)$", pages, re.MULTILINE)
    members = {member for owner, member in shown if owner[0].isupper()}
    assert {"scan", "state"} <= members
    assert not members & INTERNAL
