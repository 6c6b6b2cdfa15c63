"""Public functions: checks, autograd, registration. The kernels are in csrc/."""
