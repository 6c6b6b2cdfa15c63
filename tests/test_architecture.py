"""The shape of the code, from its syntax trees: how wide a function is, who may import whom, how long a file.

Every check is a function of a root folder that returns its offenders, ``file:line: what``; each is tried on a small
tree with one offender planted, and then on this repository.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ucmkd_fast"
OPS = f"{PACKAGE}.ops"
MOST_PARAMETERS = 7
MOST_LINES = 400

#: What users call: their options are keywords with defaults, and stay flat.
PUBLIC = {
    "sinkhorn", "sinkhorn_loss", "class_conditional_loss", "label_transport_loss", "linear_label_transport_loss",
}  # fmt: skip

#: Layers of ops from the bottom: a module imports from its own layer and from those below it. Patterns are of names
#: below ops; `_cpu.*` are the modules of a package, which is `_cpu` itself. A door does not import from another one.
LAYERS = {
    "records and rules": (
        "_problem", "_addresses", "_pieces", "_call_site", "not_converged", "transforms", "_dual", "_products",
        "_control", "_held", "_classes", "_label", "arguments", "checks", "cost", "refusals", "memory", "sharded",
    ),
    "doors": ("_cpu", "_cpu.*", "_cuda", "_cuda.*", "_reference", "_reference.*"),
    "devices": ("_devices", "cuda_switches"),
    "functions": (
        "_by_torch", "_autograd", "_registered", "_padded", "matrix", "_panels", "_panels_twice", "relative_reg",
        "_plan_rows", "_draws", "_projections", "result",
    ),
    "route": ("_route",),
    "lists": ("_lists",),
    "public": ("", "sinkhorn", "class_conditional", "label_transport", "linear_label_transport"),
}  # fmt: skip

#: Files of ops that ask for a device though they are neither `_devices.py` nor in `_cuda/`, and why.
MAY_ASK_FOR_A_DEVICE = {
    "memory.py": "what is free is known of the machine or of a GPU, and says nothing of how a problem is solved",
    "_lists.py": "offsets have to be on the CPU: a check of an argument",
    "not_converged.py": "what is known at once is said at once, and numbers of a GPU when they have arrived",
    "_pieces.py": "torch splits elementwise operations over its threads on a CPU alone",
    "_products.py": "torch's products of half precision with float32 sums are on GPUs alone",
}

#: The compiled module, and what a NamedTuple offers.
NOT_PRIVATE = {"_C", "_asdict", "_field_defaults", "_fields", "_make", "_replace"}

#: Imports between parts of the package that lie on a circle (issue 19). It may only shrink.
ON_A_CIRCLE = {
    ("bilevel", "training"),
    ("data", "training"),
    ("methods", "bilevel"),
    ("methods", "data"),
    ("methods", "training"),
    ("report", "run"),
    ("run", "report"),
    ("training", "data"),
    ("training", "methods"),
}


class Module(NamedTuple):
    """A file of the package."""

    name: str  # dotted; of an __init__.py that of its package
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """Where its relative imports start."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


class Import(NamedTuple):
    """One imported name, or a module as a whole."""

    line: int
    module: str  # dotted, of this package
    name: str | None  # None: the module itself
    bound: str  # what it is called here; of ``import a.b`` it is a
    typing: bool  # under TYPE_CHECKING


class Package:
    """The modules of a tree and what each of them imports of the others."""

    def __init__(self, root: Path):
        self.root = root
        self.modules: dict[str, Module] = {}
        for path in sorted((root / PACKAGE).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
        self.imports = {name: list(self._imports(module)) for name, module in self.modules.items()}

    def below(self, name: str) -> list[Module]:
        """The modules of a package."""
        return [m for n, m in self.modules.items() if n == name or n.startswith(name + ".")]

    def at(self, module: Module, line: int) -> str:
        """Where something is, as an editor opens it."""
        return f"{module.path.relative_to(self.root)}:{line}"

    def _imports(self, module: Module) -> Iterator[Import]:
        typing_only = {
            id(node)
            for block in ast.walk(module.tree)
            if isinstance(block, ast.If) and last_name(block.test) == "TYPE_CHECKING"
            for statement in block.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(module.tree):
            typing = id(node) in typing_only
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        bound = alias.asname or PACKAGE
                        yield Import(node.lineno, alias.name, None, bound, typing)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                for alias in node.names if base.split(".")[0] == PACKAGE else ():
                    bound, whole = alias.asname or alias.name, f"{base}.{alias.name}"
                    if whole in self.modules:
                        yield Import(node.lineno, whole, None, bound, typing)
                    else:
                        yield Import(node.lineno, base, alias.name, bound, typing)

    @staticmethod
    def _base(module: Module, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.package.split(".")
        return ".".join(parts[: len(parts) + 1 - node.level] + ([node.module] if node.module else []))

    def edges(self, name: str) -> list[tuple[str, int]]:
        """(module, line) of what a module imports when it runs."""
        return sorted(
            {(i.module, i.line) for i in self.imports[name] if not i.typing and i.module in self.modules}
            - {(name, i.line) for i in self.imports[name]}
        )


@lru_cache(maxsize=1)
def read(root: Path) -> Package:
    return Package(root)


def last_name(node: ast.AST) -> str | None:
    """Of `a.b.c` it is c."""
    return getattr(node, "attr", getattr(node, "id", None))


def is_private(name: str) -> bool:
    return (
        name.startswith("_")
        and not (name.startswith("__") and name.endswith("__"))
        and name not in NOT_PRIVATE
    )


# ---- what is checked


def wide_functions(root: Path) -> list[str]:
    """Functions of ops with more parameters than a reader can hold."""
    package, found = read(root), []
    for module in package.below(OPS):
        for function, inside in functions_in(module.tree):
            count = parameters(function, inside)
            if count > MOST_PARAMETERS and not may_be_wide(function, inside):
                name = getattr(function, "name", "a lambda")
                found.append(f"{package.at(module, function.lineno)}: {name} has {count} parameters")
    return found


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def functions_in(tree: ast.AST, inside: ast.AST | None = None) -> Iterator[tuple[Function, ast.AST | None]]:
    """Every function with the class or the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, inside
        holds = isinstance(node, (Function, ast.ClassDef))
        yield from functions_in(node, node if holds else inside)


def parameters(function: Function, inside: ast.AST | None) -> int:
    """How many a caller gives: without the self, cls or ctx of a method."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    own = isinstance(inside, ast.ClassDef) and names[:1] and names[0] in ("self", "cls", "ctx")
    others = len(given.kwonlyargs) + (given.vararg is not None) + (given.kwarg is not None)
    return len(names) - bool(own) + others


def may_be_wide(function: Function, inside: ast.AST | None) -> bool:
    """A public function, one whose signature torch.library reads, or an autograd Function's, tensors one by one."""
    if isinstance(function, ast.Lambda):
        return False
    for decorator in function.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if last_name(called) in ("custom_op", "register_fake"):
            return True
    if isinstance(inside, ast.ClassDef):
        of_autograd = any(ast.unparse(base).endswith("autograd.Function") for base in inside.bases)
        return of_autograd and function.name in ("forward", "backward")
    return inside is None and function.name in PUBLIC


def private_names(root: Path) -> list[str]:
    """Private names of another module, and private modules of another subject."""
    package, found = read(root), []
    for name, module in package.modules.items():
        bound: dict[str, str] = {}  # what imported names stand for
        for each in package.imports[name]:
            where = package.at(module, each.line)
            for k, part in enumerate(each.module.split(".")):
                above = ".".join(each.module.split(".")[:k])
                if is_private(part) and subject(above) not in (PACKAGE, subject(name)):
                    found.append(f"{where}: {each.module} is a private module of {subject(above)}")
            if each.name and each.module != name and is_private(each.name):
                found.append(f"{where}: {each.name} is a private name of {each.module}")
            plain = each.name is None and each.bound == PACKAGE
            whole = each.module if each.name is None else f"{each.module}.{each.name}"
            bound[each.bound] = PACKAGE if plain else whole
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Attribute) and is_private(node.attr)):
                continue
            chain = ast.unparse(node.value).split(".")
            owner = ".".join([bound.get(chain[0], ""), *chain[1:]])
            if owner.startswith(PACKAGE) and f"{owner}.{node.attr}" not in package.modules:
                where = package.at(module, node.lineno)
                found.append(f"{where}: {node.attr} is a private name of {owner}")
    return list(dict.fromkeys(found))


def subject(name: str) -> str:
    """The part of the package that a module belongs to: a folder, or the package itself."""
    return ".".join(name.split(".")[:2])


def circles_in_ops(root: Path) -> list[str]:
    """Imports of ops that lie on a circle."""
    package = read(root)
    inside = {m.name for m in package.below(OPS)}
    graph = {name: {target for target, _ in package.edges(name) if target in inside} for name in inside}
    return [
        f"{package.at(package.modules[name], line)}: {name} and {target} import each other, "
        f"by way of {' -> '.join(way(graph, target, name))}"
        for name in sorted(inside)
        for target, line in package.edges(name)
        if target in inside and way(graph, target, name)
    ]


def way(graph: dict[str, set[str]], start: str, end: str) -> list[str]:
    """A shortest way from start to end, both with it; [] where there is none."""
    before: dict[str, str | None] = {start: None}
    queue = [start]
    for node in queue:
        if node == end:
            path = [node]
            while (last := before[path[0]]) is not None:
                path.insert(0, last)
            return path
        for following in sorted(graph.get(node, ())):
            if following not in before:
                before[following] = node
                queue.append(following)
    return []


def imports_that_run_up(root: Path) -> list[str]:
    """Imports of ops from a layer above, or from one door into another; modules that are in no layer."""
    package, found = read(root), []
    order = list(LAYERS)
    for module in package.below(OPS):
        own = layers_of(module.name)
        if len(own) != 1:
            is_in = f"in {len(own)} layers ({', '.join(own)})" if own else "in no layer"
            found.append(
                f"{package.at(module, 1)}: {module.name} is {is_in} of LAYERS in {Path(__file__).name}"
            )
            continue
        for target, line in package.edges(module.name):
            above = layers_of(target)
            if not target.startswith(OPS) or len(above) != 1:
                continue
            where = package.at(module, line)
            if order.index(above[0]) > order.index(own[0]):
                found.append(
                    f"{where}: {module.name} ({own[0]}) imports {target} ({above[0]}), which is above it"
                )
            doors = [name.split(".")[2] for name in (module.name, target) if own == above == ["doors"]]
            if len(set(doors)) == 2:
                found.append(f"{where}: {module.name} imports {target}: one door into another")
    return found


def layers_of(name: str) -> list[str]:
    below = name.removeprefix(OPS).removeprefix(".")
    return [layer for layer, patterns in LAYERS.items() if any(fnmatch(below, p) for p in patterns)]


def questions_for_a_device(root: Path) -> list[str]:
    """Where ops asks what device a tensor is on, outside the one place for it and CUDA's own; reasons without use."""
    package, found, asked = read(root), [], set()
    for module in package.below(OPS):
        below = module.path.relative_to(root / PACKAGE / "ops").as_posix()
        if below == "_devices.py" or below.startswith("_cuda/"):
            continue
        for node in ast.walk(module.tree):
            if asks_for_a_device(node):
                asked.add(below)
                if below not in MAY_ASK_FOR_A_DEVICE:
                    found.append(f"{package.at(module, node.lineno)}: asks for a device: {ast.unparse(node)}")
    return found + [
        f"{PACKAGE}/ops/{name}:1: does not ask for a device, but has a reason to: take it out of MAY_ASK_FOR_A_DEVICE"
        for name in MAY_ASK_FOR_A_DEVICE
        if name not in asked and (root / PACKAGE / "ops" / name).exists()
    ]


def asks_for_a_device(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return last_name(node.func) == "runs_on"
    if not isinstance(node, ast.Attribute):
        return False
    return node.attr in ("is_cuda", "is_cpu") or (node.attr == "type" and last_name(node.value) == "device")


def long_files(root: Path) -> list[str]:
    """Python of ops and sources of csrc that are more than one thought."""
    files = [*(root / PACKAGE / "ops").rglob("*.py"), *(root / "csrc").rglob("*")]
    found = []
    for path in sorted(p for p in files if p.is_file() and p.suffix != ".md"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            found.append(f"{path.relative_to(root)}:{MOST_LINES + 1}: {lines} lines, at most {MOST_LINES}")
    return found


def pybind_outside_bind(root: Path) -> list[str]:
    """Sources that know of Python though they are not its binding."""
    includes = re.compile(r'\s*#\s*include\s*[<"]pybind11')
    return [
        f"{path.relative_to(root)}:{number}: includes pybind11 outside csrc/bind/"
        for path in sorted(p for p in (root / "csrc").rglob("*") if p.is_file())
        if (root / "csrc" / "bind") not in path.parents
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if includes.match(line)
    ]


def circles_of_packages(root: Path) -> list[str]:
    """Imports between folders of the package that lie on a circle and are not listed; listed ones that are gone."""
    package = read(root)
    folders = {subject(m.package) for m in package.modules.values()} - {PACKAGE}
    uses: dict[tuple[str, str], list[str]] = {}
    for name, module in package.modules.items():
        for target, line in package.edges(name):
            pair = subject(name), subject(target)
            if pair[0] != pair[1] and folders.issuperset(pair):
                uses.setdefault(pair, []).append(package.at(module, line))
    graph: dict[str, set[str]] = {}
    for start, end in uses:
        graph.setdefault(start, set()).add(end)
    on_a_circle = {pair for pair in uses if way(graph, pair[1], pair[0])}
    short = {(a.removeprefix(PACKAGE + "."), b.removeprefix(PACKAGE + ".")): (a, b) for a, b in on_a_circle}
    found = [
        f"{where}: {a} imports {b}, which comes back by {' -> '.join(way(graph, *short[a, b][::-1]))}"
        for a, b in sorted(short.keys() - ON_A_CIRCLE)
        for where in uses[short[a, b]]
    ]
    gone = sorted(ON_A_CIRCLE - short.keys())
    return found + [
        f"{Path(__file__).name}:1: {a} -> {b} is on no circle now: take it out of ON_A_CIRCLE"
        for a, b in gone
    ]


Check = Callable[[Path], list[str]]
CHECKS: tuple[Check, ...] = (
    wide_functions,
    private_names,
    circles_in_ops,
    imports_that_run_up,
    questions_for_a_device,
    long_files,
    pybind_outside_bind,
    circles_of_packages,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_repository(check):
    assert len(read(ROOT).below(OPS)) > 10 and (ROOT / "csrc" / "core").is_dir()
    offenders = sorted(check(ROOT), key=lambda o: (o.split(":")[0], int(o.split(":")[1])))
    assert not offenders, "\n" + "\n".join(offenders)


# ---- the checks themselves: a tree without offenders, and one planted at a time

CLEAN = {
    "ucmkd_fast/__init__.py": "from .ops.sinkhorn import sinkhorn\n",
    "ucmkd_fast/_native.py": "from . import _C\n",
    "ucmkd_fast/config.py": "_own = 1\n",
    "ucmkd_fast/ops/__init__.py": "",
    "ucmkd_fast/ops/_problem.py": "from .._native import _C\ndef made(a, b, c, d, e, f, *, g):\n    return _C.x\n",
    "ucmkd_fast/ops/memory.py": "def free(device):\n    return device.type\n",
    "ucmkd_fast/ops/_cpu/__init__.py": "from .._problem import made\nfrom . import loss\n",
    "ucmkd_fast/ops/_cpu/loss.py": "from .. import _problem\n_problem.made._fields\n_problem.__doc__\n",
    "ucmkd_fast/ops/_cuda/__init__.py": "def runs_on(t):\n    return t.is_cuda\n",
    "ucmkd_fast/ops/_devices.py": "from . import _cpu, _cuda\ndef door(t):\n    return _cuda.runs_on(t) or _cpu\n",
    "ucmkd_fast/ops/_autograd.py": (
        "import torch\nfrom ._devices import door\n"
        "class Loss(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, a, b, c, d, e, f, g, h):\n        return a\n"
        "    @staticmethod\n    def helper(ctx, a, b, c, d, e, f, g):\n        return a\n"
        "@torch.library.custom_op('x::y', mutates_args=())\ndef op(a, b, c, d, e, f, g, h):\n    return a\n"
        "@op.register_fake\ndef _(a, b, c, d, e, f, g, h):\n    return a\n"
    ),
    "ucmkd_fast/ops/_route.py": "from . import _autograd\n",
    "ucmkd_fast/ops/sinkhorn.py": (
        "from typing import TYPE_CHECKING\nfrom . import _route as way\n"
        "if TYPE_CHECKING:\n    from .. import methods\n"
        "def sinkhorn(a, b, c, d, e, f, g, h):\n    return way\n"
    ),
    "ucmkd_fast/methods/__init__.py": "from ..ops.sinkhorn import sinkhorn\nfrom . import _own\n",
    "ucmkd_fast/methods/_own.py": "",
    "csrc/README.md": "line\n" * 500,
    "csrc/core/math.h": "// #include <pybind11/pybind11.h>\n" + "int x;\n" * 399,
    "csrc/bind/bind.h": "#include <pybind11/pybind11.h>\n",
}  # fmt: skip

PLANTED = [
    (wide_functions, "ops/_problem.py", "def wide(a, b, c, d, e, f, g, h): ...\n", 1, "wide has 8"),
    (wide_functions, "ops/_problem.py", "def wide(a, b, c, *, d, e, f, g, **h): ...\n", 1, "wide has 8"),
    (wide_functions, "ops/_problem.py", "made = lambda a, b, c, d, e, f, g, *h: a\n", 1, "a lambda has 8"),
    (wide_functions, "ops/_problem.py", "def a():\n    def sinkhorn(a, b, c, d, e, f, g, h): ...\n", 2, "has 8"),
    (wide_functions, "ops/_problem.py", "class A:\n    def b(self, a, b, c, d, e, f, g, h): ...\n", 2, "b has 8"),
    (wide_functions, "ops/_problem.py", "class A:\n    def forward(ctx, a, b, c, d, e, f, g, h): ...\n", 2, "has 8"),
    (wide_functions, "ops/_problem.py",
     "class A(torch.autograd.Function):\n    def solve(ctx, a, b, c, d, e, f, g, h): ...\n", 2, "solve has 8"),
    (private_names, "methods/a.py", "from ..config import _own\n", 1, "_own is a private name of ucmkd_fast.config"),
    (private_names, "methods/a.py", "from .. import config as c\n\nc._own\n", 3, "_own is a private name"),
    (private_names, "methods/a.py", "import ucmkd_fast.config\nucmkd_fast.config._own\n", 2, "_own is a private name"),
    (private_names, "methods/a.py", "from ..ops import _problem\n", 1, "ucmkd_fast.ops._problem is a private module"),
    (private_names, "methods/a.py", "def a():\n    from ..ops._problem import made\n", 2, "is a private module of"),
    (private_names, "methods/a.py", "from ..ops.sinkhorn import sinkhorn\nsinkhorn._x\n", 2, "_x is a private name"),
    (private_names, "ops/_route.py", "from ._problem import _x\n", 1, "_x is a private name"),
    (private_names, "ops/_route.py", "from . import _problem\n_problem._x()\n", 2, "_x is a private name"),
    (circles_in_ops, "ops/_cpu/loss.py", "from .. import _devices\n", 1, "_cpu.loss and ucmkd_fast.ops._devices"),
    (circles_in_ops, "ops/_problem.py", "def late():\n    from ._route import x\n", 2, "by way of ucmkd_fast.ops"),
    (imports_that_run_up, "ops/_problem.py", "from ._devices import door\n", 1, "_problem (records and rules) imports"),
    (imports_that_run_up, "ops/_devices.py", "from . import sinkhorn\n", 1, "_devices (devices) imports"),
    (imports_that_run_up, "ops/_cpu/loss.py", "from .._cuda import runs_on\n", 1, "one door into another"),
    (imports_that_run_up, "ops/_new.py", "", 1, "ucmkd_fast.ops._new is in no layer"),
    (questions_for_a_device, "ops/_route.py", "def a(x):\n    return x.is_cuda\n", 2, "x.is_cuda"),
    (questions_for_a_device, "ops/_route.py", "a = x[0].is_cpu\n", 1, "x[0].is_cpu"),
    (questions_for_a_device, "ops/_route.py", "a = x.device.type == 'cuda'\n", 1, "x.device.type"),
    (questions_for_a_device, "ops/_cpu/loss.py", "a = device.type\n", 1, "device.type"),
    (questions_for_a_device, "ops/_route.py", "a = _cuda.runs_on(x)\n", 1, "_cuda.runs_on(x)"),
    (questions_for_a_device, "ops/memory.py", "", 1, "take it out of MAY_ASK_FOR_A_DEVICE"),
    (long_files, "ops/_route.py", "x = 1\n" * 401, 401, "401 lines, at most 400"),
    (long_files, "../csrc/core/math.h", "int x;\n" * 401, 401, "401 lines, at most 400"),
    (pybind_outside_bind, "../csrc/core/math.h", "\n  # include <pybind11/stl.h>\n", 2, "includes pybind11"),
    (pybind_outside_bind, "../csrc/bind.h", '#include "pybind11/stl.h"\n', 1, "includes pybind11"),
    (circles_of_packages, "ops/_route.py", "from ..methods import x\n", 1, "ops imports methods, which comes back by"),
    (circles_of_packages, "ops/_route.py", "def a():\n    from ..methods import _own\n", 2, "ops imports methods"),
]  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes a tree with some files in place of those of CLEAN; nothing is on a circle there."""
    monkeypatch.setitem(globals(), "ON_A_CIRCLE", set())

    def write(changes: Iterable[tuple[str, str]] = ()) -> Path:
        for name, text in {**CLEAN, **dict(changes)}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        read.cache_clear()
        return tmp_path

    yield write
    read.cache_clear()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_found_where_nothing_is(check, tree):
    assert check(tree()) == []


@pytest.mark.parametrize(
    ("check", "name", "text", "line", "what"), PLANTED, ids=lambda v: getattr(v, "__name__", None)
)
def test_an_offender_is_found(check, name, text, line, what, tree):
    path = name.removeprefix("../") if name.startswith("../") else f"{PACKAGE}/{name}"
    found = check(tree([(path, text)]))
    assert any(f.startswith(f"{path}:{line}: ") and what in f for f in found), found


def test_every_check_is_tried():
    assert {check for check, *_ in PLANTED} == set(CHECKS)


def test_a_listed_circle_that_is_gone_is_told(tree, monkeypatch):
    monkeypatch.setitem(globals(), "ON_A_CIRCLE", {("ops", "methods")})
    root = tree()
    assert "ops -> methods is on no circle now" in circles_of_packages(root)[0]
    root = tree([(f"{PACKAGE}/ops/_route.py", "from ..methods import x\n")])
    assert [f.split(": ")[1].split(",")[0] for f in circles_of_packages(root)] == ["methods imports ops"]
