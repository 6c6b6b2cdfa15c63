"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels, shipped with that package."""

from __future__ import annotations

import torch

from .labelled import TensorData
from .splits import split_stratified

CLASSES = [str(digit) for digit in range(10)]


def handwritten_digits() -> TensorData:
    """All images (1797, 1, 8, 8) float32, of mean 0 and deviation 1 over the data set.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "handwritten digits come with scikit-learn, which is not installed: "
            "pip install 'ucmkd-fast[demo]'"
        ) from error
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None]
    return TensorData((x - x.mean()) / x.std(), torch.from_numpy(digits.target), CLASSES)


def split_digits(seed: int = 0) -> tuple[TensorData, TensorData, TensorData]:
    """Handwritten digits for training, validation and testing: 70, 15 and 15 % of every class."""
    train, val, test = split_stratified(handwritten_digits(), (0.7, 0.15, 0.15), seed=seed)
    return train, val, test
