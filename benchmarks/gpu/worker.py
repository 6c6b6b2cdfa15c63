"""Runs the cases of a mode one after the other, from a given one on; `run.py` reads what it says."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from run import MARK, NEXT_PLEASE

MODULES = {"peers": "others"}  # where a module's name is not the mode's


@dataclass
class Case:
    """``run`` gives figures, or rows of figures each with its own ``case``."""

    name: str
    run: Callable[[], dict[str, Any] | Iterable[dict[str, Any]]]
    limit: float = 40
    alone: bool = False  # in a process of its own


def say(**message: Any) -> None:
    print(MARK + json.dumps(message), flush=True)


def device_is_lost() -> bool:
    try:
        torch.cuda.synchronize()
        return False
    except Exception:  # any error here is one of the context
        return torch.cuda.is_available()


def show(name: str, found: dict[str, Any] | Iterable[dict[str, Any]]) -> None:
    if isinstance(found, dict):
        say(row={"case": name, **found})
        return
    for figures in found:
        say(row={"case": name, **figures})


def main() -> None:
    mode, start = sys.argv[1], int(sys.argv[2])
    cases = importlib.import_module(MODULES.get(mode, mode)).cases()
    say(cases=[case.name for case in cases])
    for index in range(start, len(cases)):
        case = cases[index]
        say(start=index, name=case.name, limit=case.limit)
        try:
            show(case.name, case.run())
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:  # the other cases go on
            traceback.print_exc()
            say(row={"case": case.name, "failed": f"{type(error).__name__}: {error}".strip()[:300]})
        say(end=index)
        if case.alone or device_is_lost():
            sys.stdout.flush()
            os._exit(NEXT_PLEASE)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]  # what modules of cases import is this one
    main()
