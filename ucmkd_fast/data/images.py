"""Images from files to tensors, on Pillow: resize, crop, flip, ImageNet's statistics.

What a file holds (depth, orientation, transparency) is settled by `pixels.ImageReading`.

A picture comes out as (3, size, size) float32, of ImageNet's mean and deviation. Random numbers come
from a NumPy generator that the caller hands in; without one nothing is random.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..extras import need
from ..ops.checks import choice, count_at_least_one
from .pixels import ImageReading, readable_formats

if TYPE_CHECKING:
    from PIL.Image import Image

_AS_IT_IS = ImageReading()
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, red green blue

_LARGEST = 50_000_000  # pixels: a header that says more is a mistake, or an attack


def read_image(path: Path, reading: ImageReading = _AS_IT_IS) -> Image:
    """A picture file as `ImageReading` gives it; of several pages or frames the first.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: Pillow is not installed.
        ValueError: not a whole picture; the message starts with the file's name.
    """
    need("PIL.Image")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a picture, there is none")
    with path.open("rb") as file:
        return _decoded(file, str(path), reading)


def decode_image(content: bytes, name: str, reading: ImageReading = _AS_IT_IS) -> Image:
    """A picture from a file's content, as `read_image`; error messages start with the name."""
    return _decoded(io.BytesIO(content), name, reading)


def _decoded(file: BinaryIO, name: str, reading: ImageReading) -> Image:
    pillow = need("PIL.Image")
    try:
        with pillow.open(file, formats=readable_formats()) as image:
            if image.width * image.height > _LARGEST:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {_LARGEST}")
            return reading(image)
    except pillow.UnidentifiedImageError as error:  # its own words name the object in memory
        file.seek(0)
        start = file.read(8)
        what = (
            f"it begins with {start!r}, which is no format of pictures that is read"
            if start
            else "it is empty"
        )
        raise ValueError(f"{name}: not a readable picture: {what}") from error
    # A broken picture makes Pillow fail in many ways.
    except Exception as error:
        raise ValueError(f"{name}: not a readable picture: {error}") from error


@dataclass(frozen=True)
class ImageTransform:
    """What is done to a picture.

    Attributes:
        size: pixels of each side.
        augment: in training: "random-crop" (8 to 100 % of the area, 3:4 to 4:3, resized, and flipped by
            chance), "center-crop", or "none": resized as in testing.
    """

    size: int = 224
    augment: str = "random-crop"

    def __post_init__(self) -> None:
        count_at_least_one("size", self.size)
        choice("augment", self.augment, ("random-crop", "center-crop", "none"))

    def __call__(self, image: Image, random: np.random.Generator | None = None) -> Tensor:
        """(3, size, size) of a picture; ``random`` is given in training alone."""
        if random is None or self.augment == "none":
            image = _resized(image, self.size, (0, 0, image.width, image.height))
        elif self.augment == "center-crop":
            image = center_crop(image, self.size)
        else:
            image = _resized(image, self.size, random_box(image.width, image.height, random))
            if random.random() < 0.5:
                image = image.transpose(need("PIL.Image").Transpose.FLIP_LEFT_RIGHT)
        return normalised(image)


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a random part: 8-100 % of the area, aspect 3:4 to 4:3.

    Ten tries, then the largest part in the middle whose aspect is in range (Szegedy et al. 2015, as
    torchvision's RandomResizedCrop does it).
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    aspect = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def center_crop(image: Image, size: int) -> Image:
    """The middle ``size`` x ``size`` pixels; a smaller picture is made up with black."""
    left, upper = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, upper, left + size, upper + size))


def normalised(image: Image) -> Tensor:
    """(3, H, W) float32 of a picture, of ImageNet's mean and deviation; grey is red, green and blue alike."""
    values = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    pixels = values.expand(3, -1, -1) if values.dim() == 2 else values.permute(2, 0, 1)
    return ((pixels - _column(MEAN)) / _column(DEVIATION)).contiguous()


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _resized(image: Image, size: int, box: tuple[int, int, int, int]) -> Any:
    """A part of a picture, ``size`` x ``size``, bilinear with antialiasing."""
    if box != (0, 0, image.width, image.height):
        image = image.crop(box)
    return image.resize((size, size), need("PIL.Image").Resampling.BILINEAR)
