"""Watches for reads of tensors by the host: each would make a GPU wait."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostRead(TorchDispatchMode):
    """Fails on every op that reads values on the host, but on the states of random generators (uint8)."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.READS) and args[0].dtype != torch.uint8:
            raise AssertionError(f"aten::{name} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


def forbid_python_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a module of this package, the ops apart, reads a tensor from Python."""

    def watched(name):
        original = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("ucmkd_fast.") and not caller.startswith("ucmkd_fast.ops"):
                raise AssertionError(f"{caller} calls Tensor.{name}")
            return original(self, *args, **kwargs)

        return read

    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, watched(name))
