"""Models: the contract (encode, head; feature maps) and the backbones."""

from .backbones import digit_cnn, mlp, speech_cnn
from .contract import Classifier, check_model
from .layer import LayerEncoder, classifier_of_layer
from .maps import MappedClassifier, encode_with_maps
from .projector import Projected, with_width
from .registry import build_model, model_keys, model_names
from .reused_head import reuse_head

__all__ = [
    "Classifier",
    "LayerEncoder",
    "MappedClassifier",
    "Projected",
    "build_model",
    "check_model",
    "classifier_of_layer",
    "digit_cnn",
    "encode_with_maps",
    "mlp",
    "model_keys",
    "model_names",
    "reuse_head",
    "speech_cnn",
    "with_width",
]
