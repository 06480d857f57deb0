"""Reads docstrings for the site: Sphinx roles as Markdown, and what only a running Python shows."""

import ast
import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(\w+):`(~?)([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*)?$)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
MADE_BY = ("property", "setting", "_newest", "_of_the_synapse")
"""Functions that make a property; one or more of their later arguments document it."""


class Docstrings(griffe.Extension):
    """Changes what griffe has read of a package, as soon as all of it is there."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        objects = list(_objects(pkg))
        for each in objects:
            if each.is_attribute and not each.docstring:
                _document_property(each)
            elif each.is_function:
                _show_parameters(each)
        for each in objects:
            if not each.docstring and each.parent.is_class and (text := _inherited(each)):
                each.docstring = griffe.Docstring(text, parent=each)
        for each in objects:
            if each.docstring:
                each.docstring.value = _markdown(each.docstring.value, each)


def _objects(of: griffe.Object) -> Any:
    """The object and all that it holds, without what was only imported."""
    yield of
    for member in of.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _document_property(attribute: griffe.Attribute) -> None:
    """The documentation that a function which makes properties was given."""
    made = attribute.value
    if isinstance(made, griffe.ExprCall) and str(made.function) in MADE_BY:
        texts = [text for each in made.arguments[1:] if (text := _text(each, attribute.module))]
        if texts:
            attribute.docstring = griffe.Docstring(" ".join(texts), parent=attribute)


def _text(value: str | griffe.Expr, module: griffe.Module) -> str | None:
    """A text that an expression is, or that a constant of the package names."""
    if isinstance(value, griffe.ExprName):
        value = getattr(module.modules_collection[value.canonical_path], "value", value)
    try:
        return ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        return None


def _show_parameters(function: griffe.Function) -> None:
    """Parameters as callers see them: none private, and the base's in place of ``**options``."""
    shown = [each for each in function.parameters if not each.name.startswith("_")]
    for decorator in function.decorators:
        if decorator.callable_path.endswith(".lists_options_of"):
            (name,) = decorator.value.arguments
            base = function.module.modules_collection[name.canonical_path]
            defaults = [each for each in base["__init__"].parameters if each.default is not None]
            shown = [*shown[:-1], *defaults]
    function.parameters = griffe.Parameters(*shown)


def _inherited(member: griffe.Object) -> str | None:
    """The docstring of what a member overrides."""
    for base in member.parent.mro():
        if (found := base.members.get(member.name)) and found.docstring:
            return found.docstring.value
    return None


def _markdown(text: str, scope: griffe.Object) -> str:
    text = EXAMPLE.sub("Examples:", text)  # griffe knows the plural only
    text = FORMULA.sub(lambda match: _display(match[2], match[1]), text)
    return ROLE.sub(lambda match: _inline(*match.groups(), scope), text)


def _display(formula: str, indent: str) -> str:
    formula = textwrap.dedent(formula).strip()
    if r"\\" in formula:
        formula = rf"\begin{{split}}{formula}\end{{split}}"
    return textwrap.indent(f"$$\n{formula}\n$$\n", indent)


def _inline(role: str, short: str, target: str, scope: griffe.Object) -> str:
    """A formula, or a link to what the role names, as seen from the object that names it."""
    if role == "math":
        return f"${target}$"
    shown = target.rsplit(".", 1)[-1] if short else target
    path = _path(target, scope)
    ours = path.split(".")[0] == scope.package.name
    return f"[`{shown}`][{path}]" if ours else f"`{shown}`"


def _path(target: str, scope: griffe.Object) -> str:
    """The full name of a target, which may be a member of the class, inherited or not."""
    name, _, rest = target.partition(".")
    while not scope.is_module:
        if scope.is_class and name in scope.all_members:
            found = scope.all_members[name]
            return f"{found.canonical_path}.{rest}".rstrip(".")
        scope = scope.parent
    if name == scope.package.name:
        return target
    return f"{scope.resolve(name)}.{rest}".rstrip(".")
