"""Distillation methods: one file each, one registry."""

from . import c2kd, ce, feature, joint, kd, norm, reviewkd, ucmkd  # noqa: F401  (they register themselves)
from .base import (
    FrozenTeacher,
    LossMethod,
    Method,
    Step,
    TrainedTeacher,
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
    "TrainedTeacher",
    "available_methods",
    "build_method",
    "method_class",
    "register",
]
