"""Where experiments are: files of the user's, and those that come along."""

from __future__ import annotations

from pathlib import Path

from ..names import nearest

SHIPPED = Path(__file__).parents[1] / "configs"


def shipped_experiments() -> list[str]:
    """The names of the experiments that come along, such as ``paper/table6``."""
    found = (path.relative_to(SHIPPED).with_suffix("") for path in SHIPPED.glob("*/*.yaml"))
    return sorted(path.as_posix() for path in found if path.name not in ("figures", "task"))


def find_experiment(name: str) -> Path:
    """A YAML file by its path, or an experiment that comes along by its name.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped_experiments()
    if name in known:
        return SHIPPED / f"{name}.yaml"
    near = nearest(name, known)
    hint = f"known names: {', '.join(known)}" if near is None else f"did you mean {near}?"
    raise FileNotFoundError(f"{name}: expected a YAML file or the name of an experiment; {hint}")
