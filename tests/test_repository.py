"""What workflows, templates and releases name exists and agrees."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
DOTFILES = [*sorted((ROOT / ".github").rglob("*.*")), ROOT / ".pre-commit-config.yaml"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def notes():
    spec = importlib.util.spec_from_file_location("notes", ROOT / ".ci" / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notes


def test_the_version_has_its_section_in_the_changelog(notes):
    version = re.search(r'^version = "(.*)"$', read("pyproject.toml"), re.MULTILINE)[1]
    changelog = read("docs/changelog.md")
    newest = re.search(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)[1]
    assert newest == version
    assert f"version = {{{version}}}" in read("README.md"), "the one to cite"
    section = notes(f"v{version}", read("pyproject.toml"), changelog)
    assert section.startswith("### ") and "\n## " not in section


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v1.0.1", "## [1.0.0] - 2026-01-02\n- new\n", "the tag is v1.0.1"),
        ("1.0.0", "## [1.0.0] - 2026-01-02\n- new\n", "the tag is 1.0.0"),
        ("v1.0.0", "## [1.0.0]\n- new\n", "no dated section"),
        (
            "v1.0.0",
            "## [1.0.0] - 2026-01-02\n\n## [0.9.0] - 2025-01-02\n- old\n",
            "no dated section",
        ),
    ],
)
def test_a_release_is_refused_where_files_disagree(notes, tag, changelog, message):
    with pytest.raises(SystemExit, match=message):
        notes(tag, 'name = "x"\nversion = "1.0.0"\n', changelog)


def test_a_release_is_told_by_its_own_section(notes):
    changelog = "## [1.0.0] - 2026-01-02\n\n- new\n\n## [0.9.0] - 2025-01-02\n- old\n"
    assert notes("v1.0.0", 'version = "1.0.0"\n', changelog) == "- new"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_ask_for_little_and_end(path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        for used in filter(None, (step.get("uses") for step in job["steps"])):
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", used), used


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.stem)
def test_dotfiles_parse(path):
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_scripts_that_workflows_and_guides_name_exist():
    named = {
        script
        for path in DOTFILES
        for script in re.findall(r"\.ci/[\w.]*\w", path.read_text("utf-8"))
    }
    assert {".ci/run", ".ci/oldest", ".ci/release_notes.py"} <= named
    for script in named:
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("form", ["bug", "speed"])
def test_reports_come_with_versions_and_devices(form):
    assert "`tritonsyn info --json`" in read(f".github/ISSUE_TEMPLATE/{form}.yml")


def test_the_top_level_stays_as_small_as_it_is():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "LICENSE", "README.md", "bench", "docs", "kernels", "pyproject.toml", "tests", "tritonsyn",
    }  # fmt: skip
