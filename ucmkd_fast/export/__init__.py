"""A trained student on its own: to safetensors, torch.export and ONNX, checked for equal outputs on load."""

from .formats import FORMATS
from .student import Exported, export_run, load_student

__all__ = ["FORMATS", "Exported", "export_run", "load_student"]
