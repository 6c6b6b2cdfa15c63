"""Cross-modal knowledge distillation without paired data, on fused kernels."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import _native as _native
from .losses import FeatureAlignmentLoss, LabelTransportLoss
from .ops.assign import assign
from .ops.class_conditional import class_conditional_loss
from .ops.doubly_stochastic import doubly_stochastic
from .ops.label_transport import label_transport_loss
from .ops.linear_label_transport import linear_label_transport_loss
from .ops.not_converged import ConvergenceWarning
from .ops.result import Convergence, SinkhornResult
from .ops.sinkhorn import sinkhorn, sinkhorn_loss

if TYPE_CHECKING:
    from . import compat
    from .distiller import Distiller

    __version__: str

__all__ = [
    "Convergence",
    "ConvergenceWarning",
    "Distiller",
    "FeatureAlignmentLoss",
    "LabelTransportLoss",
    "SinkhornResult",
    "assign",
    "class_conditional_loss",
    "compat",
    "doubly_stochastic",
    "label_transport_loss",
    "linear_label_transport_loss",
    "sinkhorn",
    "sinkhorn_loss",
]


def __getattr__(name: str) -> Any:
    """On first use: the loop imports accelerate, which those who only want the losses need not wait for."""
    if name == "__version__":
        try:
            return version("ucmkd-fast")
        except PackageNotFoundError:  # a tree on the path, never installed
            return "0+unknown"
    if name == "Distiller":
        from .distiller import Distiller

        return Distiller
    if name == "compat":
        return importlib.import_module(".compat", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
