"""The documents speak of the tree as it is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT

PROGRAMS = ("trainer", "server", "client", "demo", "benchmarks")
SOURCES = (".py", ".h", ".cpp", ".js")


def test_the_codemap_has_every_source_file_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("## Codemap")[1]
    listed = set(re.findall(r"^- `([^`]+)`", text, re.MULTILINE))
    files = {
        path.relative_to(ROOT).as_posix()
        for program in PROGRAMS
        for path in (ROOT / program).rglob("*")
        if path.suffix in SOURCES and (path.name != "__init__.py" or path.stat().st_size)
    }
    assert listed == files


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text("utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_module_says_what_it_is_for() -> None:
    for program in PROGRAMS:
        for path in (ROOT / program).rglob("*.py"):
            text = path.read_text("utf-8")
            assert not text or text.startswith('"""'), path


def test_no_file_grows_into_a_heap() -> None:
    for program in PROGRAMS:
        for path in Path(ROOT / program).rglob("*.py"):
            lines = len(path.read_text("utf-8").splitlines())
            assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"


def test_the_tests_that_a_document_names_are_there() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for file, name in re.findall(
            r"`(tests/[\w/]+\.py)(?:::(\w+))?", document.read_text("utf-8")
        ):
            assert (ROOT / file).exists(), f"{document.name}: {file}"
            assert f"def {name}" in (ROOT / file).read_text("utf-8"), f"{document.name}: {name}"
