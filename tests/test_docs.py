"""The Python of the README and of docs/ runs, and their links lead somewhere."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from pydoc import locate

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
PICTURE = re.compile(r"!\[([^\]]*)\]")
LISTED = re.compile(r"^::: (\S+)(\n    options: .*)?$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def named(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    """Python blocks of a page, with their line numbers."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == "python":
            yield text[: match.start(2)].count("\n"), match[2]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_python_of_a_page_runs(page, capsys):
    """Block after block, in one namespace; what asserts, asserts."""
    found = list(blocks(page))
    imports = {name for _, code in found for name in IMPORT.findall(code)}
    missing = sorted(name for name in imports if not importlib.util.find_spec(name))
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for line, code in found:
        # Blank lines first, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, page, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} is missing"
        if page.is_relative_to(DOCS):
            shown = {".md", ".png", ".py"} if path.parent == DOCS / "examples" else {".md", ".png"}
            on_site = path.is_relative_to(DOCS) and path.suffix in shown
            assert on_site, f"the site has no {target}: name it in code font"
        if anchor.startswith("tritonsyn."):  # which the strict build of the site checks
            assert path.parent == REFERENCE, f"{target} is not a page of the reference"
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{named(path)} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pictures_say_what_is_seen(page):
    for alt in PICTURE.findall(page.read_text(encoding="utf-8")):
        assert len(alt.split()) >= 8, f"say what the picture shows, not only {alt!r}"


def listed_in_the_reference():
    """Full names of what the reference shows; of a module, of all that is in it."""
    for page in REFERENCE.glob("*.md"):
        for name, options in LISTED.findall(page.read_text(encoding="utf-8")):
            if name.startswith("tritonsyn.interop."):  # its library may not be here
                continue
            yield name
            if "members: false" not in options:
                yield from (f"{name}.{each}" for each in getattr(locate(name), "__all__", ()))


def test_the_reference_has_all_that_is_public_and_documented():
    listed = set(listed_in_the_reference())
    for name in listed:
        owner, _, member = name.rpartition(".")
        if member not in vars(locate(owner)).get("__annotations__", {}):  # of instances only
            assert inspect.getdoc(locate(name)), f"{name} is not there, or has no docstring"
    shown = [locate(name) for name in listed]
    for module in ("", ".functional", ".init", ".parametrizations", ".regularizers", ".distributed",
                   ".export", ".nir", ".testing"):  # fmt: skip
        module = locate(f"tritonsyn{module}")
        for name in module.__all__:
            assert any(getattr(module, name) is each for each in shown), f"{name} is not shown"


def test_the_page_of_commands_has_their_help():
    """Word by word: where argparse breaks lines depends on the version of Python."""
    spec = importlib.util.spec_from_file_location("command_line", DOCS / "command_line.py")
    command_line = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command_line)
    written = command_line.PAGE.read_text(encoding="utf-8")
    assert written.split() == command_line.page().split(), "run python docs/command_line.py"


def test_the_readme_has_its_commands_on_lines_of_their_own():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    install = "python -m pip install torch==2.13.0 -e"
    assert lines.count(f'{install} ".[demo]" && tritonsyn demo') == 1
    assert lines.count(f'{install} ".[test]" && python -m pytest') == 1
    assert sum('-e ".[test]"' in line for line in lines) == 1


def test_the_tables_of_the_performance_page_are_those_of_the_results():
    command = [sys.executable, str(ROOT / "docs" / "measured.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
