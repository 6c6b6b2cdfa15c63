"""Models of pictures that also take clips of several: the feature of a clip is the mean over its frames."""

from __future__ import annotations

from torch import Tensor

from .contract import Classifier
from .maps import MappedClassifier


class FrameClassifier(Classifier):
    """A `Classifier` of (n, C, H, W) that takes (n, frames, C, H, W) as well."""

    def encode(self, x: Tensor) -> Tensor:
        """Features (n, D); of a clip their mean over its frames."""
        return over_frames(self.encoder(_folded(x)), x)


class MappedFrameClassifier(MappedClassifier):
    """A `MappedClassifier` of (n, C, H, W) that takes (n, frames, C, H, W) as well."""

    def encode(self, x: Tensor) -> Tensor:
        """Features (n, D); of a clip their mean over its frames."""
        return over_frames(self.encoder(_folded(x)), x)

    def encode_with_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (n, D) and the layers' outputs (n, C, ...); of a clip their means over its frames."""
        feature, maps = super().encode_with_maps(x)
        return feature, [over_frames(one, x) for one in maps]


def over_frames(output: Tensor, x: Tensor) -> Tensor:
    """The mean over frames of an output (n * frames, ...); itself where x had no frames."""
    return output.unflatten(0, x.shape[:2]).mean(1) if x.dim() == 5 else output


def _folded(x: Tensor) -> Tensor:
    return x.flatten(0, 1) if x.dim() == 5 else x
