"""Drop-in replacements: ``compat.pot`` for POT's entropic solvers, ``compat.geomloss`` for its `SamplesLoss`."""
