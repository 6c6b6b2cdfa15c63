"""Benchmarks: each checks that implementations agree before it times them in the same rounds.

A module a subject, each with ``rows(quick)``; ``ucmkd bench`` runs them, ``benchmarks/performance_page.py`` writes
their figures down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from .harness import Row

#: Subject -> what it measures.
SUBJECTS = {
    "sinkhorn": "the loss and its exact gradient against POT, plain torch, torch.compile and OTT-JAX",
    "converged": "the regularised loss run to a tolerance, against GeomLoss",
    "unbalanced": "the unbalanced loss and its exact gradient against POT, plain torch and the balanced call",
    "samples_loss": "the drop-in for GeomLoss's SamplesLoss and its gradient, against GeomLoss",
    "overhead": "what surrounds the kernels in one small call, against a function that does nothing",
    "bandwidth": "one sweep against a plain sum over the same matrix",
    "threads": "the size of a sweep from which a second thread pays",
    "busy": "a call while other processes hold the processors",
    "accuracy": "float32 against float64",
    "offset": "float32 against float64 for features far from the origin, and near each other",
    "memory": "extra memory of the loss and its gradient",
    "label_transport": "the label losses against the torch composite, a plain cross-entropy and Liger's linear losses",
    "assign": "balanced assignments against SwAV's own lines in torch",
    "doubly_stochastic": "the projection of small matrices against eager and compiled torch, and `sinkhorn`",
    "estimate": "what `ucmkd estimate` expects against what a loss and its gradient take",
    "bilevel": "one training step against plain cross-entropy and feature distillation",
}


def rows_of(subject: str) -> Callable[[bool], Iterator[Row]]:
    """The ``rows`` function of a subject: quick or not -> rows, as they are measured."""
    return import_module(f".{subject}", __package__).rows
