"""Write docs/errors.md: every error that a user can cause, from the code that raises it.

The source is searched for the project's user errors; the message and the remedy of each are
shown with the values that are filled in as ``<names>``. A test compares the page with the code,
so that neither can change alone.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
KINDS = {"UserError", "ArtefactError", "PassingError", "DamagedSource", "StageFailedError"}
_TITLES = {
    "artefacts": "Stored artefacts",
    "cli": "Commands",
    "comparison": "Comparing the arms",
    "data": "Datasets",
    "errors": "The machine",
    "evaluation": "Benchmarks and evaluation",
    "experiment": "The experiment file",
    "miniature": "The miniature world",
    "inference": "Models, tokenizers and devices",
    "orchestration": "Runs, stores and pages",
    "rating": "Rating",
    "report": "The report",
    "selection": "Ranking and selection",
    "storage": "Storage",
    "tuning": "Tuning",
}


@dataclass(frozen=True)
class Entry:
    """One place that raises a user error."""

    part: str
    module: str
    function: str
    message: str
    remedy: str
    lines: range


def _shown(node: ast.expr | None) -> str:
    """Return a message as a reader of the page sees it: filled-in values as ``<names>``."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_shown, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"<{_name(node.value)}>"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _shown(node.left) + _shown(node.right)
    if isinstance(node, ast.IfExp):
        return " or ".join(filter(None, (_shown(node.body), _shown(node.orelse))))
    return f"<{_name(node)}>"


def _name(node: ast.expr) -> str:
    """Return a short name of a value: the last name in it that says something."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        inner = [*node.args, node.func]
        return _name(inner[0])
    if isinstance(node, ast.Subscript | ast.Starred | ast.Await):
        return _name(node.value)
    if isinstance(node, ast.IfExp):
        return _name(node.body)
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
    return _name(names[0]) if names else "value"


def entries() -> list[Entry]:
    """Return every error, by part, module and place."""
    found = []
    package = ROOT / "selectit_dagster"
    for path in sorted([*package.rglob("*.py"), *(ROOT / "assets").glob("*.py")]):
        module = path.relative_to(ROOT).as_posix()
        names = module.split("/")
        part = names[1].removesuffix(".py") if names[0] == "selectit_dagster" else "orchestration"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = _constants(tree)
        for function, call in _calls(tree):
            if not call.args:
                continue
            hint = next((k.value for k in call.keywords if k.arg == "hint"), None)
            if isinstance(hint, ast.Name):
                hint = constants.get(hint.id, hint)
            message = " ".join(_shown(call.args[0]).split())
            remedy = " ".join(_shown(hint).split())
            lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
            found.append(Entry(part, module, function, message, remedy, lines))
    return found


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the texts that a module gives a name to."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def _calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Return the constructions of user errors with the function that each stands in."""
    found: list[tuple[str, ast.Call]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            found.append((function, node))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


def page(found: list[Entry]) -> str:
    """Return the page."""
    lines = [
        "# Errors, and what to do about them",
        "",
        "Every error that wrong input, a damaged file or a machine can cause. Each is one message",
        "and one remedy, exit code 2, no traceback; the exit code is 1 where a stage failed that",
        "may well succeed when it is started again. Written by `make errors` from the code; what",
        "stands in `<angle brackets>` is filled in.",
    ]
    for part in sorted({entry.part for entry in found}, key=lambda p: _TITLES.get(p, p)):
        lines += ["", f"## {_TITLES.get(part, part)}", "", "| message | remedy | from |"]
        lines.append("|---|---|---|")
        for entry in found:
            if entry.part == part:
                place = entry.module.removeprefix("selectit_dagster/").removesuffix(".py")
                cells = (_cell(entry.message), _cell(entry.remedy), f"`{place}`")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|").replace("<", "‹").replace(">", "›")
    return escaped


def main() -> int:
    """Write the page."""
    found = entries()
    PAGE.write_text(page(found), encoding="utf-8")
    sys.stdout.write(f"{len(found)} errors -> {PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
