"""Kernels as the machine runs them: compiled, disassembled, and counted loop by loop."""
