"""Which files below a folder are samples, which are not read, and what they are called."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .class_names import check_distinct

# Made by systems and programs, never by a person. What begins with a dot is passed over too: macOS's "._1.png",
# ".ipynb_checkpoints".
_NOT_OURS = frozenset(  # in lower case: Windows writes them in several
    "__macosx @eadir $recycle.bin thumbs.db ehthumbs.db desktop.ini lost+found __pycache__ icon\r".split(" ")
) | {"system volume information"}

_BROKEN = "link to nothing"
_PARTS = {  # folders of parts -> the parts
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}


@dataclass(frozen=True)
class ClassFiles:
    """The samples of a folder with a subfolder per class.

    Attributes:
        files: sorted by class and path, n of them.
        labels: (n,) int64.
        classes: the subfolders' names, sorted.
        ids: the files' paths in the folder, without their endings where these tell no two of them apart.
    """

    files: list[Path]
    labels: Tensor
    classes: list[str]
    ids: list[str]


def is_ours(name: str) -> bool:
    """Whether a file or folder of this name may hold samples: neither hidden nor the system's own."""
    return not name.startswith(".") and name.lower() not in _NOT_OURS


def files_below(folder: Path, root: Path) -> Iterator[Path]:
    """All files at any depth, in links to folders too; hidden ones and the system's own are passed over.

    A link back to a folder that it lies in is not followed, nor one to ``root``, which holds ``folder``, or above it:
    the files there are other classes'.

    Raises:
        OSError: a folder that cannot be read.
    """
    top = Path(os.path.realpath(root))
    return _below(folder, frozenset(map(str, [top, *top.parents])))


def _below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    own = os.path.realpath(folder)
    if own in above:  # a link back to a folder that it lies in
        return
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if not is_ours(entry.name):
            continue
        if _is_folder(entry):
            yield from _below(folder / entry.name, above | {own})
        else:
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def files_by_class(root: Path, suffixes: Collection[str], what: str) -> ClassFiles:
    """The files with the given endings (of any case), by class; a warning counts the others by their endings.

    Folders whose names differ in blanks around them alone are one class.

    Args:
        root: the folder.
        suffixes: the endings that are read, in lower case.
        what: the samples' name in messages, such as "pictures".

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a folder that cannot be read.
        ValueError: no subfolder, one without a file that is read, two that are one folder, names that look alike, or
            parts (train, val, test) in the place of classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with a subfolder per class, there is none")
    found: dict[str, list[Path]] = {}
    named: dict[str, str] = {}  # by the folder itself
    unread: dict[str, Counter[str]] = {}
    beside: Counter[str] = Counter()
    for entry in sorted(root.iterdir()):
        if not is_ours(entry.name):
            continue
        if not entry.is_dir():
            beside[kind_of(entry) if entry.exists() else _BROKEN] += 1
            continue
        name = entry.name.strip()
        other = named.setdefault(os.path.realpath(entry), name)
        if other != name:
            raise ValueError(
                f"{root}: {other!r} and {name!r} are one folder: its files would be of two classes"
            )
        files, others = found.setdefault(name, []), unread.setdefault(name, Counter())
        for path in files_below(entry, root):
            if path.suffix.lower() in suffixes:
                files.append(path)
            else:
                others[kind_of(path)] += 1
    classes = sorted(found)
    beside = Counter({kind: count for kind, count in beside.items() if kind in suffixes or kind == _BROKEN})
    _check_all_have_files(root, found, unread, beside, what)
    check_distinct(classes, str(root))
    _check_not_parts(root, classes)
    warn_of_unread(root, sum(unread.values(), Counter()), sum(map(len, found.values())), beside)
    files = [path for name in classes for path in sorted(found[name])]
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return ClassFiles(files, torch.tensor(labels), classes, ids_of(files, root))


def ids_of(files: Collection[Path], root: Path) -> list[str]:
    """Each file's path in ``root`` without its ending; with it where two would have the same name."""
    whole = [path.relative_to(root).as_posix() for path in files]
    bare = [path.relative_to(root).with_suffix("").as_posix() for path in files]
    count = Counter(bare)
    ids = [short if count[short] == 1 else name for short, name in zip(bare, whole, strict=True)]
    return ids if len(set(ids)) == len(ids) else whole


def kind_of(path: Path) -> str:
    """The ending of a file that is not read, for counting."""
    return path.suffix.lower() or "without an ending"


def counted(kinds: Counter[str], most: int = 8) -> str:
    """Counts by kind in a sentence: "3 .heic, 1 .txt"."""
    said = [f"{count:,} {kind}" for kind, count in kinds.most_common(most)]
    if len(kinds) > most:
        said.append(f"{kinds.total() - sum(count for _, count in kinds.most_common(most)):,} of other kinds")
    return ", ".join(said)


def warn_of_unread(root: Path, kinds: Counter[str], read: int, beside: Counter[str] | None = None) -> None:
    """Warn of files that are not read, by their kinds, and of samples beside the folders of the classes."""
    said = []
    if kinds:
        said.append(f"{kinds.total():,} of {read + kinds.total():,} files are not read: {counted(kinds)}")
    if beside:
        said.append(f"{counted(beside)} beside the subfolders belong to no class")
    if said:
        warnings.warn(f"{root}: {'; '.join(said)}", stacklevel=4)


def _check_not_parts(root: Path, classes: list[str]) -> None:
    if all(name.lower() in _PARTS for name in classes):
        own = ", ".join(f"{_PARTS[name.lower()]}: {{..., root: {root / name}}}" for name in classes)
        raise ValueError(
            f"{root}: {', '.join(map(repr, classes))} are names of parts, expected a subfolder per class; give each "
            f"part a root of its own, such as data: {{{own}}}"
        )


def _check_all_have_files(
    root: Path, found: dict[str, list[Path]], unread: dict[str, Counter[str]], beside: Counter[str], what: str
) -> None:
    lacking = [name for name, files in found.items() if not files]
    there = "; ".join(f"{name!r} holds {counted(unread[name]) or 'no file'}" for name in lacking[:10])
    more = f" (and {len(lacking) - 10} more folders)" if len(lacking) > 10 else ""
    if len(lacking) == len(found):
        here = f"; {root.name} itself holds {counted(beside)}" if beside else ""
        said = f": {there}{more}" if lacking else ""
        raise ValueError(f"{root}: expected {what} in a subfolder per class, found none{said}{here}")
    if lacking:
        raise ValueError(
            f"{root}: expected {what} in every subfolder, as each is a class: {there}{more}; a folder that is no class "
            "belongs elsewhere, or under a name that begins with a dot"
        )
