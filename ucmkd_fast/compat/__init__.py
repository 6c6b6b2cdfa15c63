"""Drop-in replacements: ``compat.pot`` for POT's entropic solvers, ``compat.geomloss`` for its `SamplesLoss`."""

from . import geomloss, pot

__all__ = ["geomloss", "pot"]
