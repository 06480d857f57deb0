"""Turns the formulas of a page into MathML, which browsers show without a script."""

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
MINUS = re.compile(r"((?:&#x00028;|&#x0003D;|&#x0002C;|\[)</mo>)<mo>(?=&#x02212;)")
"""A minus after a bracket, an equals sign or a comma: a sign, without space around it."""
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3}


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""

    def mathml(match: re.Match[str]) -> str:
        block = match["tag"] == "div"
        made = _convert(html.unescape(match["latex"]), page.file.src_uri, block)
        return f'<div class="formula">{made}</div>' if block else made

    return FORMULA.sub(mathml, content)


def _convert(latex: str, where: str, block: bool) -> str:
    """The formula as MathML; raises where a part of it was not understood."""
    try:
        made = convert(latex, display="block" if block else "inline")
        elements = list(ElementTree.fromstring(made).iter())
    except Exception as error:
        raise PluginError(f"{where}: cannot convert the formula {latex}: {error!r}") from error
    # Unknown commands become identifiers of that name, and missing arguments missing children.
    wrong = [each.text for each in elements if "\\" in (each.text or "")]
    wrong += [tag for each in elements if len(each) < CHILDREN.get(tag := _tag(each), 0)]
    braces = re.sub(r"\\.", "", latex)
    if wrong or braces.count("{") != braces.count("}"):
        raise PluginError(f"{where}: cannot convert {' '.join(wrong)} in the formula {latex}")
    return MINUS.sub(r'\1<mo form="prefix">', made)


def _tag(element: ElementTree.Element) -> str:
    """The name of an element, without its namespace."""
    return element.tag.rpartition("}")[2]
