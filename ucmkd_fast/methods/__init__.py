"""Distillation methods: one file each, one registry."""

from . import ce, feature, joint, kd, ucmkd  # noqa: F401  (they register themselves)
from .base import (
    FrozenTeacher,
    LossMethod,
    Method,
    Step,
    available_methods,
    build_method,
    method_class,
    register,
)

__all__ = [
    "FrozenTeacher",
    "LossMethod",
    "Method",
    "Step",
    "available_methods",
    "build_method",
    "method_class",
    "register",
]
