"""Methods against each other: at the same seeds, beside the paper's figures, with what chance allows."""

from .experiment import Cell, Experiment
from .job import Comparison, run_experiment

__all__ = ["Cell", "Comparison", "Experiment", "run_experiment"]
