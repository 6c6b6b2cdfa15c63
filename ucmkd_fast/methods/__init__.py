"""Distillation methods: one file each, one registry."""

from . import (  # noqa: F401  (they register themselves)
    c2kd,
    ce,
    dkd,
    feature,
    fitnet,
    joint,
    kd,
    label_aware_fa,
    norm,
    prototype_kd,
    reviewkd,
    rkd,
    rld,
    self_training,
    ucmkd,
    ucmkd_plus,
)
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
