#!/usr/bin/env python3
"""Check and count the structure of the package: who imports whom, circles, sizes.

    python scripts/structure.py            prints the counts, then every violation; exit status 1 if there is one

`RULES` is the whole contract. A row names a room (a folder, or a single file at the top) and what it may import beside
itself: rooms, or single files. The longest name that fits a file counts, so a file can have a row of its own.
test/test_architecture.py runs these checks, and plants a violation of each kind to see it caught.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "sqap_vla_ros"
MOST_LINES = 450  # of a file
MOST_FILES = 13  # of a folder, its __init__.py aside

_BASE = ("contracts", "resources")
_ROS = ("nodes.messages", "nodes.images", "nodes.parameter_table", "nodes.tf")
_MODEL = ("policy", "quantization", "pruning", "compression")
_FILM = ("policy.preprocessing", "pruning.overlay", "compression.load", "shipped")  # the film's tokens
_STUDY = ("processes", "evaluation.action_metrics")
RULES: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "contracts": (),
    "resources": (),
    "text_rows": (),
    "processes": (),
    "policy": (*_BASE, "text_rows"),
    "quantization": (*_BASE, "text_rows"),
    "robot": _BASE,
    "pruning": _BASE,
    "pruning.overlay": (*_BASE, "policy.preprocessing"),
    "simulation": (*_BASE, "robot"),
    "control": (*_BASE, "robot"),
    "compression": (*_BASE, "text_rows", "policy", "quantization", "pruning"),
    "shipped": (*_BASE, "compression", "policy", "simulation.observations"),
    "serving": _BASE,
    "serving.worker_process": (*_BASE, "compression.load", "shipped"),
    "serving.server": (*_BASE, "serving", "robot"),
    "training": (*_BASE, "processes", "policy", "simulation"),
    "nodes": (*_BASE, "robot"),
    "nodes.tf": _BASE,
    "nodes.launch": _BASE,
    "nodes.launch.table": (*_BASE, "nodes", "simulation.vocabulary"),  # names the modules to start
    "nodes.recorder": (*_BASE, *_ROS, "robot"),
    "nodes.policy": (*_BASE, *_ROS, "robot", "control", "serving"),
    "nodes.policy.reports.views": (*_BASE, *_ROS, "policy.preprocessing", "pruning.overlay"),
    "nodes.simulator": (*_BASE, *_ROS, "robot", "simulation"),
    "nodes.bags": (*_BASE, *_ROS, "robot", "control", "nodes.policy.observer"),
    "evaluation.closed_loop": (*_BASE, *_STUDY, *_MODEL, "shipped", "robot", "simulation"),
    "evaluation.replay": (*_BASE, *_STUDY, *_MODEL, "shipped", "robot", "serving", "nodes"),
    "evaluation.demo": (*_BASE, *_FILM, "robot", "simulation", "nodes"),
    "evaluation": _BASE,
    "evaluation.selectors": (*_BASE, *_MODEL),
    "commands": (*_BASE, *_MODEL, "shipped", "robot", "simulation", "serving", "nodes", "evaluation", "training"),
    "cli": (*_BASE, "processes", "commands"),
}

# Libraries that only some rooms may import, at the top of a file or inside a function.
LIBRARIES: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"rclpy", "tf2_ros", "launch", "launch_ros", "cv_bridge"}), ("nodes",)),
    (
        frozenset({"sensor_msgs", "geometry_msgs", "std_msgs", "std_srvs", "trajectory_msgs", "tf2_msgs", "nav_msgs"}),
        ("nodes", "evaluation"),  # messages are data: evaluation writes bags with them, without a running ROS
    ),
    (
        frozenset({"torch", "transformers"}),  # the policy lives in a process of its own
        (*_MODEL, "training", "evaluation", "commands", "serving.worker_process"),
    ),
    (frozenset({"mujoco"}), ("simulation", "nodes.simulator")),
)

# Files that import a module by a name that they are given: message types, a policy's factory.
DYNAMIC = ("nodes.bags.conversion", "serving.worker_process")

_MODULE_NAME = re.compile(rf"{PACKAGE}(\.\w+)+(?=$|:)")
_IMPORTERS = {"import_module", "__import__", "find_spec"}


@dataclass(frozen=True)
class Reference:
    """One mention of a module by a file.

    kind: `import`, `typing` for an import under `TYPE_CHECKING`, or `name` for a module named in a string.
    """

    name: str
    line: int
    kind: str


@dataclass
class Tree:
    """The modules of a package folder by dotted name (without the package's own), and what each refers to."""

    root: Path
    modules: dict[str, Path]
    references: dict[str, list[Reference]]
    problems: list[str]

    def where(self, module: str, line: int) -> str:
        """`file:line`, for messages."""
        return f"{self.modules[module].relative_to(self.root.parent)}:{line}"

    def target(self, name: str) -> str:
        """The module of the package that a full name means, "" when it is none of ours."""
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            return ""
        inner = name.removeprefix(PACKAGE).lstrip(".")
        while inner and inner not in self.modules:
            inner = inner.rpartition(".")[0]
        return inner


def read_tree(root: Path) -> Tree:
    """Read every module below `root`, the package's folder. Imports under `TYPE_CHECKING` count like all others."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    tree = Tree(root, modules, {}, [])
    for name, path in modules.items():
        found = list(_references(tree, name, path))
        imported = {(reference.name, reference.line) for reference in found if reference.kind != "name"}
        tree.references[name] = [r for r in found if r.kind != "name" or (r.name, r.line) not in imported]
    return tree


def _references(tree: Tree, module: str, path: Path) -> Iterator[Reference]:
    syntax = ast.parse(path.read_text(), str(path))
    guarded = {
        inner
        for node in ast.walk(syntax)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(syntax):
        kind = "typing" if node in guarded else "import"
        if isinstance(node, ast.Import):
            yield from (Reference(alias.name, node.lineno, kind) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                tree.problems.append(f"{tree.where(module, node.lineno)} imports relatively; import by full name")
            yield from (Reference(f"{node.module}.{alias.name}", node.lineno, kind) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in _IMPORTERS and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield Reference(str(argument.value), node.lineno, "import")
            elif module not in DYNAMIC:
                tree.problems.append(
                    f"{tree.where(module, node.lineno)} imports a module by a computed name; import it by its name, or "
                    f"add the file to DYNAMIC in scripts/structure.py and say why"
                )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_NAME.match(node.value):
            yield Reference(node.value.partition(":")[0], node.lineno, "name")


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def rule_of(module: str, rules: Mapping[str, tuple[str, ...]] = RULES) -> str:
    """The row that a module falls under, "" when there is none."""
    name = module or "__init__"
    while name and name not in rules:
        name = name.rpartition(".")[0]
    return name


def _room(tree: Tree, module: str, rules: Mapping[str, tuple[str, ...]]) -> str:
    """The folder with a row of its own that a module is in; files of one room may import each other."""
    row = rule_of(module, rules)
    is_file = row in tree.modules and tree.modules[row].name != "__init__.py"
    return rule_of(row.rpartition(".")[0], rules) or row if is_file and "." in row else row


def _within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def wrong_imports(tree: Tree, rules: Mapping[str, tuple[str, ...]] = RULES) -> list[str]:
    """Imports that no row allows, and files that no row covers."""
    wrong = []
    for module, references in tree.references.items():
        row = rule_of(module, rules)
        if not row:
            if "." not in module:
                wrong.append(
                    f"{tree.where(module, 1)}: the room {module!r} has no row in RULES of scripts/structure.py: "
                    "add one that says what it may import"
                )
            continue
        room = _room(tree, module, rules)
        for reference in references:
            target = tree.target(reference.name)
            if target and _room(tree, target, rules) != room and not _within(target, rules[row]):
                verb = "names" if reference.kind == "name" else "imports"
                wrong.append(
                    f"{tree.where(module, reference.line)} {verb} {PACKAGE}.{target}, but {row} may only import "
                    f"{', '.join(rules[row]) or 'nothing'}"
                )
    return wrong


def wrong_libraries(tree: Tree) -> list[str]:
    """Libraries imported where they do not belong."""
    return [
        f"{tree.where(module, reference.line)} imports {reference.name}, which belongs to {', '.join(rooms)}"
        for module, references in tree.references.items()
        for reference in references
        for names, rooms in LIBRARIES
        if reference.kind == "import" and reference.name.split(".")[0] in names and not _within(module, rooms)
    ]


def circles(tree: Tree) -> list[str]:
    """Groups of files that import each other around, `TYPE_CHECKING` imports counted (Tarjan's algorithm)."""
    edges = {
        module: sorted({tree.target(r.name) for r in references if r.kind != "name" and tree.target(r.name)} - {module})
        for module, references in tree.references.items()
    }
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in edges[module]:
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(f"these files import each other in a circle: {', '.join(sorted(group))}")

    for module in edges:
        if module not in order:
            visit(module)
    return found


def too_large(*folders: Path) -> list[str]:
    """Files over `MOST_LINES` lines and folders of over `MOST_FILES` files."""
    wrong = []
    for folder in folders:
        rooms: dict[Path, int] = defaultdict(int)
        for path in sorted(folder.rglob("*.py")):
            lines = len(path.read_text().splitlines())
            if lines > MOST_LINES:
                wrong.append(f"{path.relative_to(folder.parent)} has {lines} lines; split it, {MOST_LINES} is the most")
            rooms[path.parent] += path.name != "__init__.py"
        wrong += [
            f"{room.relative_to(folder.parent)} holds {count} files; give a subject a folder of its own, {MOST_FILES} "
            "is the most"
            for room, count in rooms.items()
            if count > MOST_FILES
        ]
    return wrong


def violations(root: Path, tests: Path | None = None) -> list[str]:
    """Everything that breaks the contract, in sentences. root: the package's folder."""
    tree = read_tree(root)
    found = tree.problems + wrong_imports(tree) + wrong_libraries(tree) + circles(tree)
    return found + too_large(root, *([tests] if tests else []))


def counts(root: Path) -> str:
    """Files and lines by room, as text."""
    tree = read_tree(root)
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    longest: dict[str, tuple[int, str]] = {}
    for path in tree.modules.values():
        room = str(path.parent.relative_to(root.parent))
        length = len(path.read_text().splitlines())
        files[room] += path.name != "__init__.py"
        lines[room] += length
        longest[room] = max(longest.get(room, (0, "")), (length, path.name))
    rows = [
        f"{room:45s}{files[room]:6d}{lines[room]:8d}   {longest[room][0]:4d} {longest[room][1]}"
        for room in sorted(lines)
    ]
    head = f"{'room':45s}{'files':>6s}{'lines':>8s}   longest file"
    total = f"{'all':45s}{sum(files.values()):6d}{sum(lines.values()):8d}   circles: {len(circles(tree))}"
    return "\n".join([head, *rows, total])


def main() -> int:
    """Print the counts and the violations."""
    top = Path(__file__).resolve().parents[1]
    print(counts(top / PACKAGE))
    found = violations(top / PACKAGE, top / "test")
    print("\n".join(found) if found else "no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
