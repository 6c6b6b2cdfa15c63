"""Models: the contract (encode, head; feature maps) and the backbones."""

from .backbones import digit_cnn, mlp, speech_cnn
from .contract import Classifier, check_model
from .maps import MappedClassifier, encode_with_maps
from .registry import build_model, model_keys, model_names

__all__ = [
    "Classifier",
    "MappedClassifier",
    "build_model",
    "check_model",
    "digit_cnn",
    "encode_with_maps",
    "mlp",
    "model_keys",
    "model_names",
    "speech_cnn",
]
