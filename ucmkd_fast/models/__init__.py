"""Models: the contract (encode, head; feature maps) and the backbones."""

from .backbones import digit_cnn, mlp, speech_cnn
from .contract import Classifier, check_model
from .maps import MappedClassifier, encode_with_maps

__all__ = [
    "Classifier",
    "MappedClassifier",
    "check_model",
    "digit_cnn",
    "encode_with_maps",
    "mlp",
    "speech_cnn",
]
