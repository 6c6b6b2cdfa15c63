"""One run from one YAML file: a teacher, a student, a method, and where it is kept."""

from .config import RunConfig

__all__ = ["RunConfig"]
