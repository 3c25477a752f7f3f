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
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGE = "sqap_vla_ros"
MOST_LINES = 450  # of a file
MOST_FILES = 13  # of a folder, its __init__.py aside

_BASE = ("contracts", "resources")
_ROS = ("nodes.messages", "nodes.images", "nodes.parameter_table", "nodes.spinning", "nodes.tf")
_CHECK = (*_BASE, *_ROS, "robot", "control", "nodes.policy")
_MODEL = ("policy", "quantization", "pruning", "compression")
_FILM = ("policy.preprocessing", "pruning.overlay", "compression.load", "shipped")  # the film's tokens
_WHOLE = ("policy.checkpoints.writing",)  # files that appear whole or not at all
_LOADED = ("compression.files.kept", "policy.costs")  # of a policy that is at work elsewhere
_DOORS = ("shipped", "policies")  # to a policy
_SUBJECTS = ("robot", "simulation", "serving", "nodes", "recordings", "training")
_STUDY = ("processes", "field_types", "evaluation.action_metrics", "evaluation.ray_cluster")
RULES: dict[str, tuple[str, ...]] = {
    "__init__": ("policies", "contracts"),
    "contracts": (),
    "field_types": (),
    "resources": (),
    "text_rows": (),
    "processes": (),
    "jpeg": (),
    "pictures": ("contracts", "jpeg"),
    "git_lfs": (),
    "yaml_files": (),
    "policy": (*_BASE, "field_types", "git_lfs", "text_rows"),
    "quantization": (*_BASE, "text_rows"),
    "robot": (*_BASE, "yaml_files"),
    "pruning": (*_BASE, "field_types"),
    "pruning.overlay": (*_BASE, "policy.preprocessing"),
    "simulation": (*_BASE, "robot"),
    "control": (*_BASE, "robot"),
    "compression": (*_BASE, "field_types", "pictures", "text_rows", "yaml_files", "policy", "quantization", "pruning"),
    "shipped": (*_BASE, "compression", "policy", "simulation.observations"),
    "policies": (
        *_BASE,
        "compression.load",
        "compression.files.kept",
        "policy.settings",
        "shipped",
        "serving.defaults",
        "serving.frames",
        "serving.remote",
    ),
    "serving": _BASE,
    "serving.worker_process": (
        *_BASE,
        "compression.load",
        "compression.files.kept",
        "policy.actions",
        "policy.cogact",
        "policy.settings",
        "shipped",
    ),
    "serving.server": (*_BASE, "serving", "robot", "pictures"),
    "training": (*_BASE, "processes", "policy", "simulation"),
    "films": (*_BASE, *_WHOLE),
    "recordings": (*_BASE, *_WHOLE, "robot", "films", "git_lfs", "pictures"),
    "nodes": (*_BASE, "robot", "jpeg"),
    "nodes.tf": _BASE,
    "nodes.launch": (*_BASE, "processes", "yaml_files", "nodes.parameter_table"),
    "nodes.launch.table": (*_BASE, "nodes", "simulation.vocabulary"),  # names the modules to start
    "nodes.recorder": (*_BASE, *_ROS, "robot"),
    "nodes.policy": (*_BASE, *_ROS, "robot", "control", "serving"),
    "nodes.policy.reports.views": (*_BASE, *_ROS, "policy.preprocessing", "pruning.overlay"),
    "nodes.simulator": (*_BASE, *_ROS, "robot", "simulation"),
    "nodes.stand_in": (*_BASE, *_ROS, "robot", "simulation.joint_path", "nodes.launch", "nodes.policy.parameters"),
    "nodes.check": (*_CHECK, "serving", "nodes.launch", "nodes.check.hand_eye"),
    "nodes.check.hand_eye": (
        *_CHECK,
        "field_types",
        "nodes.bags",
        "nodes.launch",
        "nodes.check",
        "policy.preprocessing",
        "pruning.overlay",
    ),
    "nodes.check.picture": (*_BASE, *_ROS, "nodes.policy", "policy.preprocessing", "pruning.overlay"),
    "nodes.operate": (*_BASE, *_ROS, "nodes.launch"),
    "nodes.bags": (
        *_BASE,
        *_ROS,
        "git_lfs",
        "yaml_files",
        "robot",
        "control",
        "nodes.policy.observer",
        "recordings.frames",
    ),
    "evaluation.closed_loop": (*_BASE, *_STUDY, *_MODEL, *_DOORS, "serving.frames", "robot", "simulation"),
    "evaluation.replay": (*_BASE, *_STUDY, *_MODEL, "films", "shipped", "robot", "serving", "nodes", "recordings"),
    "evaluation.demo": (*_BASE, *_FILM, *_WHOLE, *_LOADED, "films", "robot", "simulation", "nodes", "recordings"),
    "evaluation": _BASE,
    "evaluation.ray_cluster": ("processes",),
    "evaluation.selectors": (*_BASE, *_MODEL),
    "commands": (*_BASE, *_MODEL, *_SUBJECTS, "pictures", "processes", "shipped", "evaluation"),
    "cli": (*_BASE, *_WHOLE, "processes", "commands"),
}

# Libraries that only some rooms may import, at the top of a file or inside a function. A pattern is compared with as
# many parts of a name as it has itself: `torch*` fits `torchvision.ops`.
LIBRARIES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("rclpy*", "tf2_ros*", "launch*", "ament_*", "cv_bridge", "message_filters", "rosbag2_py", "rosidl_*"),
        ("nodes",),
    ),
    (
        ("*_msgs", "*_srvs", "*_interfaces", "rosbags", *(f"{PACKAGE}.{kind}" for kind in ("msg", "srv", "action"))),
        ("nodes", "evaluation"),  # messages are data: evaluation writes bags with them, without a running ROS
    ),
    (
        ("torch*", "safetensors.torch", "transformers"),  # the policy lives in a process of its own
        (*_MODEL, "training", "evaluation", "commands", "serving.worker_process"),
    ),
    (("triton",), ("quantization", "simulation.gl")),  # gl loads Triton's library before Mesa's and imports nothing
    (("mujoco", "gymnasium"), ("simulation", "nodes.simulator")),
)

# Files that import a module by a name that they are given: message types, the node to run, a policy's factory.
DYNAMIC = ("nodes.bags.conversion", "processes", "serving.worker_process")

_MODULE_NAME = re.compile(rf"(?<![\w./]){PACKAGE}(\.\w+)+")
_BY_NAME = {"import_module": "name", "find_spec": "name", "resolve_name": "name", "run_module": "mod_name"}
_LOADERS = {"__import__", "run_path", "spec_from_file_location", "spec_from_loader", "SourceFileLoader"}
_HIDING = {"exec", "eval", "compile", "sys.modules"}  # whole names: `re.compile` and `model.eval` are other functions


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
        try:
            syntax = ast.parse(path.read_bytes(), str(path))
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte, before Python 3.12
            line = getattr(error, "lineno", None) or 1
            tree.problems.append(f"{tree.where(name, line)} cannot be parsed ({getattr(error, 'msg', error)}); mend it")
            tree.references[name] = []
            continue
        found = list(_references(tree, name, syntax))
        imported = {(reference.name, reference.line) for reference in found if reference.kind != "name"}
        tree.references[name] = [r for r in found if r.kind != "name" or (r.name, r.line) not in imported]
    return tree


def _references(tree: Tree, module: str, syntax: ast.Module) -> Iterator[Reference]:
    nodes = list(ast.walk(syntax))
    guarded = {
        inner
        for node in nodes
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    bound: dict[str, str] = {}  # what a name in this file stands for
    imported = []
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for reference in _imports(tree, module, node, "typing" if node in guarded else "import", bound):
                imported.append(reference)
                yield reference
    yield from _attributes(tree, nodes, bound, {tree.target(reference.name) for reference in imported})
    yield from _dynamic_imports(tree, module, nodes, bound)
    yield from _names_in_strings(nodes)


def _imports(
    tree: Tree, module: str, node: ast.Import | ast.ImportFrom, kind: str, bound: dict[str, str]
) -> Iterator[Reference]:
    """Read an import statement, and note in `bound` the names that it defines."""
    where = tree.where(module, node.lineno)
    if isinstance(node, ast.ImportFrom) and node.level:
        tree.problems.append(f"{where} imports relatively; import by full name")
        return
    for alias in node.names:
        if isinstance(node, ast.Import):
            first = alias.name.partition(".")[0]
            bound[alias.asname or first] = alias.name if alias.asname else first
            yield Reference(alias.name, node.lineno, kind)
            continue
        name = f"{node.module}.{alias.name}"
        if alias.name == "*":
            tree.problems.append(f"{where} imports everything of {node.module}; import what you use by name")
        bound[alias.asname or alias.name] = name
        yield Reference(name, node.lineno, kind)


def _attributes(tree: Tree, nodes: list[ast.AST], bound: Mapping[str, str], imported: set[str]) -> Iterator[Reference]:
    """Find modules reached as attributes, as in `import package; package.room.file`, beside those imported by name."""
    inner = {node.value for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node not in inner:
            name = _full_name(node, bound)
            if tree.target(name) not in imported | {""}:
                yield Reference(name, node.lineno, "import")


def _dynamic_imports(tree: Tree, module: str, nodes: list[ast.AST], bound: Mapping[str, str]) -> Iterator[Reference]:
    """Find the modules imported by functions, and complain where the name cannot be read here."""
    readable = set()
    for node in nodes:
        function = _full_name(node.func, bound).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and function in _BY_NAME:
            name = _literal_module(node, _BY_NAME[function])
            if name:
                readable.add(node.func)
                yield Reference(name, node.lineno, "import")
    for node in nodes:
        if not isinstance(node, ast.Name | ast.Attribute | ast.Constant):
            continue
        name = _full_name(node, bound)
        last = name.rpartition(".")[2] or _string(node)
        where = tree.where(module, node.lineno)
        if last in _BY_NAME and node not in readable and module not in DYNAMIC:
            tree.problems.append(
                f"{where} imports a module by a computed name; import it by its name, or add the file to DYNAMIC in "
                "scripts/structure.py and say why"
            )
        elif last in _LOADERS or name.removeprefix("builtins.") in _HIDING:
            tree.problems.append(
                f"{where} uses {name or last}, which hides what is imported; import the module by its name"
            )


def _literal_module(call: ast.Call, keyword: str) -> str:
    """The module that a call such as `import_module(".x", package="y")` names in literals, "" when it does not."""
    given = dict(zip((keyword, "package"), call.args, strict=False))
    given |= {str(argument.arg): argument.value for argument in call.keywords}
    name, package = _string(given.get(keyword)), _string(given.get("package"))
    if not name.startswith("."):
        return name.partition(":")[0]
    dots = len(name) - len(name.lstrip("."))
    return ".".join([*package.split(".")[: package.count(".") + 2 - dots], name[dots:]]) if package else ""


def _names_in_strings(nodes: list[ast.AST]) -> Iterator[Reference]:
    """Find modules named in strings, f-strings among them. Docstrings may name any module."""
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and node not in docstrings:
            for match in _MODULE_NAME.finditer(_string(node)):
                yield Reference(match[0], node.lineno, "name")


def _string(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _last_name(node: ast.AST) -> str:
    """`c` of `a.b.c`, "" of anything but a name or an attribute."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _full_name(node: ast.AST, bound: Mapping[str, str]) -> str:
    """`a.b.c` as text, its first name replaced by what an import bound to it; ".c" when it begins with a value."""
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, bound)}.{node.attr}"
    return bound.get(node.id, node.id) if isinstance(node, ast.Name) else ""


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


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(".".join(name.split(".")[: pattern.count(".") + 1]), pattern)


def wrong_libraries(tree: Tree) -> list[str]:
    """Libraries imported where they do not belong."""
    return [
        f"{tree.where(module, reference.line)} imports {reference.name}, which belongs to {', '.join(rooms)}"
        for module, references in tree.references.items()
        for reference in references
        for patterns, rooms in LIBRARIES
        if reference.kind == "import"
        and any(_fits(reference.name, pattern) for pattern in patterns)
        and not _within(module, rooms)
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
