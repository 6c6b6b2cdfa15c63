"""The main job on real data: a teacher of handwriting, students of speech, not one paired sample."""

from .job import DemoResult, run_demo
from .settings import DemoSettings

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
