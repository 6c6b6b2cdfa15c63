"""Files, modules and functions that pages, comments and docstrings name are there.

Every check is a function of a root folder that returns its offenders, ``file:line: what``; each is tried on a small
tree with one offender planted, and then on this repository.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ucmkd_fast"

#: Folders that a path may start from: of the repository, and what is left out where no reader would miss it.
BASES = ("", "csrc", PACKAGE, f"{PACKAGE}/ops", "tests")
PATH = re.compile(r"(?<![\w/.<*{-])((?:[\w.-]+/)*[\w-]+\.(?:pyi?|h|cpp|cuh?|md|sh))(?![\w/*-])")
#: Pages for users name files of theirs as well: there only paths into these folders are looked at.
OURS = re.compile(rf"^(?:csrc|ops|tests|benchmarks|{PACKAGE})/")
FOLDER = re.compile(rf"(?<![\w/.-])((?:csrc|{PACKAGE}|tests|benchmarks|docs)/(?:[\w-]+/)+)(?![\w.*<{{])")
BACKTICKS = re.compile(r"(?<!`)`{1,2}([A-Za-z_][\w.]*(?:::\w+)*)(?:\(\))?`{1,2}(?!`)")

MEMBER = re.compile(r"(?<![\w.])(_[a-z]\w*)\.(?!pyi?\b)([A-Za-z_]\w*)")

#: What CONTRIBUTING.md tells its reader to make.
TO_BE_MADE = {"ucmkd_fast/methods/mean_match.py", "docs/methods/mean-match.md"}


class Words(NamedTuple):
    """Prose: a page, the comments of a file, or its docstrings."""

    path: Path
    line: int
    text: str

    def at(self, root: Path, place: int) -> str:
        """Where something is, as an editor opens it."""
        return f"{self.path.relative_to(root)}:{self.line + self.text.count(chr(10), 0, place)}"


def pages(root: Path) -> list[Path]:
    """What describes the code to those who change it."""
    return [p for p in (root / "CONTRIBUTING.md", *sorted((root / "csrc").rglob("*.md"))) if p.exists()]


def native_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))


def python_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / PACKAGE).rglob("*.py*") if p.suffix != ".pyc")


def of_native(path: Path) -> Iterator[Words]:
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"//[^\n]*(?:\n\s*//[^\n]*)*|/\*.*?\*/", text, re.DOTALL):
        yield Words(path, text.count("\n", 0, match.start()) + 1, match[0])


@cache
def tokens(path: Path) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))


def is_docstring(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.STRING and token.string.startswith(('"""', 'r"""'))


def of_python(path: Path) -> Iterator[Words]:
    for token in tokens(path):
        if token.type == tokenize.COMMENT or is_docstring(token):
            yield Words(path, token.start[0], token.string)


def whole(path: Path) -> Words:
    return Words(path, 1, path.read_text(encoding="utf-8"))


@lru_cache(maxsize=2)
def words_about_code(root: Path) -> list[Words]:
    """All that is for those who change the code."""
    found = [whole(path) for path in pages(root)]
    found += [words for path in native_files(root) for words in of_native(path)]
    return found + [words for path in python_files(root) for words in of_python(path)]


@lru_cache(maxsize=2)
def files(root: Path) -> tuple[set[str], set[str]]:
    """Files of the sources: their paths, and their names alone."""
    tops = ("csrc", PACKAGE, "tests", "benchmarks", "docs", "requirements", "examples")
    found = [p for top in tops for p in (root / top).rglob("*") if p.is_file()]
    found += [p for p in root.iterdir() if p.is_file()]
    return {str(p.relative_to(root)) for p in found}, {p.name for p in found}


def is_there(root: Path, words: Words, name: str) -> bool:
    paths, names = files(root)
    if "/" not in name:
        return name in names
    beside = words.path.parent.relative_to(root)
    return any(str(Path(base) / name) in paths for base in (*BASES, str(beside), str(beside.parent)))


def missing_files(root: Path) -> list[str]:
    """Files that are named and are not there: all in what is about code, ours in pages for users."""
    found = []
    for words in words_about_code(root):
        own = words.path.suffix == ".py" and f"{PACKAGE}/ops/" not in words.path.as_posix()
        for match in PATH.finditer(words.text):
            if own and not OURS.match(match[1]):
                continue
            if match[1] not in TO_BE_MADE and not is_there(root, words, match[1]):
                found.append(f"{words.at(root, match.start())}: {match[1]}")
    for words in map(whole, sorted((root / "docs").rglob("*.md"))):
        for match in PATH.finditer(words.text):
            if OURS.match(match[1]) and not is_there(root, words, match[1]):
                found.append(f"{words.at(root, match.start())}: {match[1]}")
    return found


def missing_folders(root: Path) -> list[str]:
    every = [*words_about_code(root), *map(whole, sorted((root / "docs").rglob("*.md")))]
    return [
        f"{words.at(root, match.start())}: {match[1]}"
        for words in every
        for match in FOLDER.finditer(words.text)
        if not (root / match[1]).is_dir()
    ]


@lru_cache(maxsize=2)
def identifiers(root: Path) -> frozenset[str]:
    """Every word that the code of the sources has outside of comments and docstrings, and what files are called."""
    found: set[str] = set()
    for path in [*native_files(root), *sorted((root / "tests" / "cuda_model").glob("*.*"))]:
        if path.suffix != ".py":
            code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            found |= set(re.findall(r"\w+", code))
    for folder in (PACKAGE, "tests", "benchmarks"):
        for path in (root / folder).rglob("*.py*"):
            for token in tokens(path) if path.suffix != ".pyc" else ():
                if token.type == tokenize.NAME or (token.type == tokenize.STRING and not is_docstring(token)):
                    found |= set(re.findall(r"\w+", token.string))
    for path in files(root)[0]:
        found |= {Path(path).stem, *Path(path).parent.parts}
        if path in ("CMakeLists.txt", "Makefile"):
            found |= set(re.findall(r"\w+", (root / path).read_text(encoding="utf-8")))
    return frozenset(found)


#: In backticks, and no names of ours: what a user types, words of torch, and of the examples of CONTRIBUTING.md.
FOREIGN = {"make", "pre", "python", "nvcc", "torch", "pybind11", "std", "git", "mkdocs", "ruff"}


def missing_names(root: Path) -> list[str]:
    """Names in backticks that no code has: functions, classes and modules that moved or went."""
    known = identifiers(root)
    found = []
    for words in words_about_code(root):
        if words.path.suffix == ".py" and f"{PACKAGE}/ops/" not in words.path.as_posix():
            continue
        for match in BACKTICKS.finditer(words.text):
            parts = re.split(r"::|\.", match[1])
            if parts[0] not in FOREIGN and not all(p in known for p in parts if p):
                found.append(f"{words.at(root, match.start())}: {match[1]}")
    return found


@lru_cache(maxsize=2)
def members(root: Path) -> dict[str, set[str]]:
    """What each module of ops offers, by the module's name."""
    found: dict[str, set[str]] = {}
    for path in (root / PACKAGE / "ops").rglob("*.py"):
        name = path.parent.name if path.stem == "__init__" else path.stem
        names = found.setdefault(name, set())
        if path.stem == "__init__":
            names |= {p.stem for p in path.parent.glob("*.py")}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {alias.asname or alias.name for alias in node.names}
    return found


def missing_members(root: Path) -> list[str]:
    """``module.name`` of a module of ops that does not have it."""
    offered = members(root)
    found = []
    for words in words_about_code(root):
        for match in MEMBER.finditer(words.text):
            module, name = match[1], match[2]
            if module in offered and name not in offered[module]:
                found.append(f"{words.at(root, match.start())}: {match[0]}")
    return found


def untold_files(root: Path) -> list[str]:
    """Files of a folder of csrc whose README.md says nothing of them; a header goes with the file of its name."""
    found = []
    for page in sorted((root / "csrc").glob("*/README.md")):
        told = set(re.findall(r"[\w.]+", page.read_text(encoding="utf-8")))
        stems = {Path(name).stem for name in told if "." in name}
        found += [
            f"{page.relative_to(root)}:1: {path.name}"
            for path in native_files(root)
            if path.parent == page.parent
            and path.name not in told
            and not (path.suffix == ".h" and path.stem in stems)
        ]
    return found


CHECKS = {
    "a file in a comment of csrc": (missing_files, "csrc/cost/a.h", "// See bind_sinkhorn.h.\n", "bind_sinkhorn.h"),
    "a path in a docstring": (missing_files, f"{PACKAGE}/ops/a.py", '"""As ops/_solve.py."""\n', "ops/_solve.py"),
    "a path in a comment": (missing_files, f"{PACKAGE}/a.py", "#: csrc/cost/gone.h has it.\n", "csrc/cost/gone.h"),
    "a path in a page": (missing_files, "docs/a.md", "`csrc/cost/gone.h` chooses.\n", "csrc/cost/gone.h"),
    "a file in CONTRIBUTING.md": (missing_files, "CONTRIBUTING.md", "in `gone.cuh`\n", "gone.cuh"),
    "a folder": (missing_folders, "csrc/README.md", "`csrc/gone/` has it\n", "csrc/gone/"),
    "a function": (missing_names, "csrc/cost/a.h", "// As `gone` does.\n", "gone"),
    "a function of a page": (missing_names, "csrc/README.md", "| `cost::gone` |\n", "cost::gone"),
    "a file that no page tells of": (untold_files, "csrc/cost/README.md", "`kept.cpp` alone\n", "gone.cpp"),
    "a member": (missing_members, f"{PACKAGE}/ops/_b.py", '"""``_b.gone`` of it."""\n', "_b.gone"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKS)
def test_a_name_of_what_is_gone_is_found(case, tmp_path):
    check, path, text, name = CHECKS[case]
    beside = {
        f"{PACKAGE}/ops/kept.py": '"""Of ops/kept.py, csrc/cost/kept.h, kept.h, `kept`, ``kept.kept``."""\nkept = 1\n',
        "csrc/cost/kept.h": "// `kept`, see csrc/cost/.\nint kept;\n",
        "csrc/cost/gone.cpp" if check is untold_files else "csrc/cost/kept.cpp": "int kept;\n",
    }
    for other, content in {path: text, **beside}.items():
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text(content, encoding="utf-8")
    assert check(tmp_path) == [f"{path}:1: {name}"]


@pytest.mark.parametrize(
    "check", [missing_files, missing_folders, missing_names, missing_members, untold_files]
)
def test_what_is_named_is_there(check):
    offenders = check(ROOT)
    assert not offenders, "\n" + "\n".join(offenders)
