"""The bi-level step (paper: Algorithm 1) without a copy of the student."""

from .step import ENCODER_PASSES, PRESETS, BilevelOptions, BilevelStep

__all__ = ["ENCODER_PASSES", "PRESETS", "BilevelOptions", "BilevelStep"]
