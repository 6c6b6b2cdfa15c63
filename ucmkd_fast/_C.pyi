"""The compiled module (csrc/bind.cpp, bind_*.h): addresses and sizes in, numbers out. Called by ops/ alone."""

from typing import Any

SinkhornProblem: Any

def __getattr__(name: str) -> Any: ...
