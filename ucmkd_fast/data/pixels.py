"""What a picture file holds, brought to one form: upright, without transparency, of known depth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

# Of what Pillow opens. EPS runs Ghostscript, the others are not decoded by Pillow itself.
_COMMON = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # tried first
_NOT_READ = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
_ORIENTATION = 0x0112  # tags of EXIF and TIFF
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_TURNS = {  # EXIF's orientations -> Pillow's transpositions that put them right
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here."""
    pillow = need("PIL.Image")
    pillow.init()
    known = set(pillow.OPEN) - _NOT_READ
    return tuple(sorted(known, key=lambda name: (name not in _COMMON, name)))


@lru_cache(maxsize=1)
def picture_suffixes() -> frozenset[str]:
    """The endings of files that the installed Pillow reads: ``.jpg``, ``.png``, ``.tif``, ``.gif`` and more.

    Raises:
        ImportError: Pillow is not installed.
    """
    formats = readable_formats()
    endings = need("PIL.Image").registered_extensions()
    return frozenset(ending for ending, of in endings.items() if of in formats)


@dataclass(frozen=True)
class ImageReading:
    """How the pixels of a file are read.

    Attributes:
        background: what is seen through transparent pixels: a name or ``"#rrggbb"`` as Pillow has them, or
            red, green and blue from 0 to 255.
        depth: bits of grey pictures that have more than eight, such as 12; white is then 2^depth - 1. None: as
            the file says: 16 (also for Pillow's 32-bit integers), 12 in a TIFF of 12 bits; floats
            are from 0 to 1.
    """

    background: str | Sequence[int] = "white"
    depth: int | None = None

    def __post_init__(self) -> None:
        depth = self.depth
        if depth is not None and (
            isinstance(depth, bool) or not isinstance(depth, int) or not 8 <= depth <= 32
        ):
            raise ValueError(f"depth must be the bits of a grey picture, 8 to 32, or None, got {depth!r}")
        if self.background != "white":  # so that the default needs no Pillow yet
            self._colour()

    def __call__(self, image: Image) -> Image:
        """The picture upright: mode "RGB", or "F" from 0 to 255 where it is grey with more than eight bits.

        Raises:
            ValueError: values beyond the depth, or an unknown background.
        """
        image.load()
        pillow = need("PIL.Image")
        if image.mode in ("L", "RGB") and _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED:
            raise ValueError("its values are signed, expected them from 0 on")
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            pixels = self._grey(image)
        elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            pixels = self._over_background(image.convert("RGBA"))
        else:
            pixels = image.convert("RGB")
        turn = _TURNS.get(_orientation(image))
        return pixels if turn is None else pixels.transpose(getattr(pillow.Transpose, turn))

    def _grey(self, image: Image) -> Image:
        pillow = need("PIL.Image")
        values = np.asarray(image)
        white = self._white(image)
        low, high = values.min(), values.max()
        if np.isnan(high):
            raise ValueError("NaN among its grey values")
        clear = image.info.get("transparency")
        shown = values != clear if clear is not None else None
        if low < 0 or high > white:
            raise ValueError(
                f"grey values from {low:g} to {high:g}, expected 0 to {white:g} (mode {image.mode}); depth says "
                "with how many bits they were recorded"
            )
        if self.depth is None and white == 65535 and 0 < high < 4096:
            warnings.warn(
                "a grey picture of 16 bits has no value over 4095 and is read as a dark one; if it was recorded "
                "with 12 bits, say depth: 12",
                stacklevel=2,
            )
        if (
            _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO
        ):  # Pillow turns those of eight bits itself, and no others
            values = white - values.astype(np.float32)
        grey = pillow.fromarray(values.astype(np.float32) * np.float32(255 / white))
        if shown is None:
            return grey
        alpha = np.where(shown, 255, 0).astype(np.uint8)
        eight = pillow.fromarray(np.asarray(grey).round().astype(np.uint8)).convert("RGBA")
        eight.putalpha(pillow.fromarray(alpha))
        return self._over_background(eight)

    def _white(self, image: Image) -> int:
        if self.depth is not None:
            return 2**self.depth - 1
        if image.mode == "F":
            return 1
        return 2 ** min(16, _tag(image, _BITS_PER_SAMPLE, 16)) - 1

    def _over_background(self, image: Image) -> Image:
        ground = need("PIL.Image").new("RGBA", image.size, (*self._colour(), 255))
        ground.alpha_composite(image)
        return ground.convert("RGB")

    def _colour(self) -> tuple[int, int, int]:
        if not isinstance(self.background, str):
            return _checked_colour(self.background)
        try:
            return need("PIL.ImageColor").getrgb(self.background)[:3]
        except ValueError as error:
            raise ValueError(f"background must be a colour, got {self.background!r}: {error}") from error


def _checked_colour(values: Sequence[int]) -> tuple[int, int, int]:
    numbers = list(values) if isinstance(values, (list, tuple)) else []
    if len(numbers) != 3 or not all(type(one) is int and 0 <= one <= 255 for one in numbers):
        raise ValueError(
            f"background must be a colour's name, or red, green and blue from 0 to 255, got {values!r}"
        )
    return numbers[0], numbers[1], numbers[2]


def _tag(image: Image, tag: int, default: int) -> int:
    """The first number of a tag of a TIFF; the default where there is none, and for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _orientation(image: Image) -> int:
    """What EXIF says; 1, upright, where there is none, or a damaged one. Asked for once the pixels are loaded.

    Pillow turns a TIFF when it loads it, and takes the tag away.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken block of EXIF makes Pillow fail in many ways, and the pixels are whole
        return 1
