"""Data sets, front ends, and how unpaired batches are drawn."""

from .bank import FeatureBank
from .batch import Batch
from .digits import handwritten_digits, split_digits
from .frontend import LogMel
from .labelled import UNLABELLED, LabelledData, TensorData
from .registry import data_keys, data_names, open_data
from .speech import SpokenDigits, spoken_digits
from .splits import balanced_rows, few_labels, split_by_group, split_by_shares, split_stratified
from .unpaired import UnpairedLoader
from .warm_start import WarmStart

__all__ = [
    "UNLABELLED",
    "Batch",
    "FeatureBank",
    "LabelledData",
    "LogMel",
    "SpokenDigits",
    "TensorData",
    "UnpairedLoader",
    "WarmStart",
    "balanced_rows",
    "data_keys",
    "data_names",
    "few_labels",
    "handwritten_digits",
    "open_data",
    "split_by_group",
    "split_by_shares",
    "split_digits",
    "split_stratified",
    "spoken_digits",
]
