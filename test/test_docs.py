"""Links, files and tests that the documentation names exist."""

import ast
import re
import runpy

import pytest
from places import ROOT

OPTION_FILES = [
    *(ROOT / "sqap_vla_ros" / "commands").rglob("*.py"),
    ROOT / "sqap_vla_ros" / "nodes" / "check" / "options.py",
    *(ROOT / "benchmarks" / "outside").glob("*.py"),
]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def _anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if linked.suffix == ".md" and anchor else []
        if not linked.exists() or (anchor and anchor not in map(_anchor, headings)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    package = ROOT / "sqap_vla_ros"
    names = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|cpp|sh|safetensors|xml))`", page.read_text())
    places = (ROOT, package)
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_exist(page):
    sources = "".join(file.read_text() for file in OPTION_FILES)
    known = set(re.findall(r'"(--[a-z-]+)"', sources)) | {"--show-args", "--feedback", "--from-paths", "--skip-keys"}
    known |= {"--build-arg", "--gpus", "--ipc", "--net", "--rm", "--time", "--user"}  # of docker
    known |= {"--local-dir"}  # of hf download
    for script in (ROOT / "scripts").glob("*.sh"):
        known |= set(re.findall(r"^  (--[a-z-]+)\)", script.read_text(), re.M))
    named = re.findall(r"(?:sqap-vla|`|ARGS=\")[^`\n]*", page.read_text())
    options = {option for text in named for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert sorted(options - known - {"--help"}) == []


def test_every_row_of_the_safety_page_has_its_test():
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "safety.md").read_text())
    files = (ROOT / "test").rglob("test_*.py")
    tests = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 20
    assert sorted(set(named) - tests) == []


def test_every_room_is_named_on_the_page_of_the_architecture():
    package = ROOT / "sqap_vla_ros"
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\|([^|]+)\|", table, re.M) for name in re.findall(r"`([^`]+)`", row)}
    rooms = {f"{file.parent.relative_to(package)}/" for file in package.rglob("__init__.py")} - {"./"}
    rooms |= {file.name for file in package.glob("*.py")} - {"__init__.py"}
    assert sorted(rooms - named) == []
    assert sorted(name for name in named if not (package / name).exists()) == []
    rows = {row.replace(".", "/") for row in runpy.run_path(str(ROOT / "scripts" / "structure.py"))["RULES"]}
    assert {f"{row}/" for row in rows if (package / row).is_dir()} <= named


def test_no_docstring_of_the_package_begins_like_a_heading():
    begins = re.compile(r"(What|How|Why|Who|Where|When|Whether|Which|Of|From|To) ")
    found = []
    for file in sorted((ROOT / "sqap_vla_ros").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if begins.match(text):
                    found.append(f"{file.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
