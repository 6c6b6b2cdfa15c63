"""What a comparison of methods looks like: numbers, tables and pictures, apart from what ran."""

from .comparison import Compared, compare

__all__ = ["Compared", "compare"]
