"""The pieces of the training loop in ``distiller.py``: schedule, checkpoints, processes, figures."""
