"""Cross-modal knowledge distillation without paired data, on fused kernels."""

from . import _native as _native
from .losses import FeatureAlignmentLoss, LabelTransportLoss
from .ops.label_transport import label_transport_loss
from .ops.sinkhorn import SinkhornResult, sinkhorn, sinkhorn_loss

__version__ = "0.1.0"

__all__ = [
    "FeatureAlignmentLoss",
    "LabelTransportLoss",
    "SinkhornResult",
    "label_transport_loss",
    "sinkhorn",
    "sinkhorn_loss",
]
