"""Data sets, front ends, and how unpaired batches are drawn."""

from .bank import FeatureBank
from .batch import Batch
from .digits import handwritten_digits, split_digits
from .frontend import LogMel
from .labelled import UNLABELLED, LabelledData, TensorData
from .speech import SpokenDigits, spoken_digits
from .splits import few_labels, split_by_group, split_stratified
from .unpaired import UnpairedLoader

__all__ = [
    "UNLABELLED",
    "Batch",
    "FeatureBank",
    "LabelledData",
    "LogMel",
    "SpokenDigits",
    "TensorData",
    "UnpairedLoader",
    "few_labels",
    "handwritten_digits",
    "split_by_group",
    "split_digits",
    "split_stratified",
    "spoken_digits",
]
