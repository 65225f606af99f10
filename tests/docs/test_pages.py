"""What the pages name is there: files, links, sections, configuration keys, and functions by their file."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from momkd_ray.config import reference
from momkd_ray.config.load import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
EXTENSIONS = ("py", "md", "yaml", "json", "toml", "cff")
SUFFIXES = {*EXTENSIONS, "csv", "txt", "parquet"}


def without_code_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def files_named(text: str) -> Iterator[str]:
    for code in CODE.findall(text):
        for word in code.split():
            if re.fullmatch(rf"[\w.]+/[\w./-]*\.({'|'.join(EXTENSIONS)})", word):
                yield word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(without_code_blocks(page.read_text())):
        if "://" in target:
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    for name in files_named(without_code_blocks(page.read_text())):
        places = [ROOT / name, ROOT / "momkd_ray" / name]
        of_a_run = name.split("/")[0] in {"runs", "momkd-demo", "data", "features"}
        assert of_a_run or any(place.exists() for place in places), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_configuration_keys_exist(page: Path) -> None:
    sections = {
        name: field.annotation.model_fields if hasattr(field.annotation, "model_fields") else None
        for name, field in Config.model_fields.items()
    }
    for section, key in re.findall(r"`(\w+)\.(\w+)(?:[:`= ])", without_code_blocks(page.read_text())):
        if sections.get(section) and key not in SUFFIXES:
            assert key in (sections[section] or {}), f"{page.name} names {section}.{key}"


def test_sections_of_the_method_that_code_cites_exist() -> None:
    sections = set(re.findall(r"^## §(\d+) ", (ROOT / "docs" / "method.md").read_text(), flags=re.MULTILINE))
    cited = {
        (path.name, number)
        for path in (ROOT / "momkd_ray").rglob("*.py")
        for number in re.findall(r"method\.md §(\d+)", path.read_text())
    }
    assert {number for _, number in cited} <= sections


def test_where_to_find_names_what_is_in_the_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `([\w/]+\.py)` \| ([^|]*) \|$", page, flags=re.MULTILINE)
    assert len(rows) > 5
    for file, names in rows:
        text = (ROOT / "momkd_ray" / file).read_text()
        for name in CODE.findall(names):
            assert re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", text), f"{file} has no {name}"


def test_rooms_of_the_architecture_are_those_of_the_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "momkd_ray").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/`", page, flags=re.MULTILINE)) == rooms


def sentences_of_the_package() -> str:
    """Every string of the package, its formatted values cut out."""
    texts = []
    for path in sorted((ROOT / "momkd_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_page_are_real() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = [code for bold in re.findall(r"\*\*(.*?)\*\*", page, flags=re.DOTALL) for code in CODE.findall(bold)]
    assert len(messages) > 15
    package = sentences_of_the_package()
    for message in messages:
        fixed = re.split(r"\.\.\.|'|\b[A-Z]\b|\b\d+\b", message)  # between what differs from time to time
        for fragment in (part.strip(" ,:;()") for part in fixed):
            assert len(fragment.split()) < 2 or fragment in package, f"no message has {fragment!r}"


def test_the_picture_of_the_rooms_is_current() -> None:
    drawn = runpy.run_path(str(ROOT / ".ci" / "draw_rooms.py"))
    assert (ROOT / "docs" / "site" / "rooms.svg").read_text() == drawn["picture"](), "run python .ci/draw_rooms.py"
    rooms = {path.parent.name for path in (ROOT / "momkd_ray").glob("*/__init__.py")}
    assert rooms <= {room for row in drawn["layers"]() for room in row}
    assert {room for row in drawn["layers"]() for room in row} == set(drawn["PURPOSES"])


def test_the_reference_of_the_configuration_is_current() -> None:
    assert reference.main(["--check", str(ROOT / "docs" / "configuration.md")]) == 0
