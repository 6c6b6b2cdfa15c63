"""Models: the contract (encode, head) and the backbones."""

from .backbones import digit_cnn, mlp, speech_cnn
from .contract import Classifier, check_model

__all__ = ["Classifier", "check_model", "digit_cnn", "mlp", "speech_cnn"]
