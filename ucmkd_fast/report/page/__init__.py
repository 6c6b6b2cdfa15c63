"""A finished run as one HTML page: gathered, drawn, written."""

from .gather import RunReport, gather
from .page import write_report

__all__ = ["RunReport", "gather", "write_report"]
