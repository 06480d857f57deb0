"""The Python of the README and of docs/ runs, and their links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
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
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{named(path)} has no heading for #{anchor}"


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
