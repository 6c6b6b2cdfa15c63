"""What a comparison of methods looks like: numbers, tables and pictures, apart from what ran."""

from .agreement import ClassAgreement, class_agreement
from .comparison import Compared, compare

__all__ = ["ClassAgreement", "Compared", "class_agreement", "compare"]
