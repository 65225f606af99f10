"""Prints measures of the code of one or more checkouts, side by side: python .ci/measures.py [CHECKOUT ...]."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines_of(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def public_objects(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, ast.AST]]:
    """A module or class and everything public in it that a caller can reach; no functions within functions."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_objects(child, f"{name}.{child.name}")
        elif isinstance(child, Function) and not child.name.startswith("_"):
            yield f"{name}.{child.name}", child


def measures(checkout: Path) -> dict[str, str]:
    files = {path: path.read_text() for path in sorted((checkout / "momkd_ray").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    sizes = sorted((lines_of(f), f"{f.name} ({path.name})") for path, tree in trees.items() for f in functions(tree))
    longest_file = max((len(text.splitlines()), path) for path, text in files.items())
    named = [
        (name, node)
        for path, tree in trees.items()
        for name, node in public_objects(tree, ".".join(path.relative_to(checkout).with_suffix("").parts))
    ]
    missing = [name for name, node in named if ast.get_docstring(node) is None]  # type: ignore[arg-type]
    longest, function = sizes[-1]
    return {
        "files": str(len(files)),
        "lines": f"{sum(len(text.splitlines()) for text in files.values()):,}",
        "longest file": f"{longest_file[0]}: {longest_file[1].relative_to(checkout / 'momkd_ray')}",
        "files over 400 lines": str(sum(len(text.splitlines()) > 400 for text in files.values())),
        "functions": str(len(sizes)),
        "longest function": f"{longest}: {function}",
        "functions over 60 lines": str(sum(size > 60 for size, _ in sizes)),
        "median function": f"{statistics.median(size for size, _ in sizes):g}",
        "public objects": str(len(named)),
        "of them without docstring": f"{len(missing)} {', '.join(missing[:3])}".strip(),
    }


def main() -> None:
    checkouts = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parents[1]]
    columns = [measures(checkout.resolve()) for checkout in checkouts]
    print(f"| | {' | '.join(map(str, checkouts))} |")
    print(f"|{'---|' * (len(columns) + 1)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
