"""The compiled module against `ucmkd_fast/_C.pyi`, and how it refuses a call."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from ucmkd_fast._native import _C

ROOT = Path(__file__).parents[1]
STUB = ast.parse((ROOT / "ucmkd_fast" / "_C.pyi").read_text())
CUDA = {node.name for node in STUB.body if getattr(node, "name", "").lower().startswith("cuda")}


def names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def signature_in_stub(node: ast.FunctionDef | ast.ClassDef) -> str | None:
    """As `inspect.signature` shows it, without types."""
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        return signature_in_stub(made[0]) if made else None
    given = node.args
    for argument in (*given.args, *given.kwonlyargs):
        argument.annotation = None
    given.args = [argument for argument in given.args if argument.arg != "self"]
    return f"({ast.unparse(given)})"


def test_the_stub_and_the_module_have_the_same_names():
    stub = {name for node in STUB.body for name in names(node)}
    module = {name for name in dir(_C) if not name.startswith("__")}
    assert module - CUDA == stub - CUDA


def test_functions_take_what_the_stub_says():
    checked = []
    for node in STUB.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in CUDA:
            made = getattr(_C, node.name)
            if inspect.isbuiltin(made) and made.__text_signature__:
                assert str(inspect.signature(made)) == signature_in_stub(node), node.name
                checked.append(node.name)
    assert {"Problem", "Features", "loss_and_gradient", "panel_gradient", "label_transport_forward"} <= set(
        checked
    )


def test_records_of_cuda_calls_have_the_fields_of_the_stub():
    text = (ROOT / "csrc" / "bind" / "cuda.cpp").read_text()
    parts = re.split(r'class_<Cuda\w+> \w+\(m, "(\w+)"', text)[1:]
    bound = {
        name: set(re.findall(r"UK_FIELD\((?!name\))(\w+)\)", part))
        for name, part in zip(parts[::2], parts[1::2], strict=True)
    }
    classes = [node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name in CUDA]
    assert bound == {node.name: {name for part in node.body for name in names(part)} for node in classes}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.Upstream(h=1), r"Upstream\(\) has no argument h"),
        (lambda: _C.Upstream(1), r"takes its arguments by name"),
        (lambda: _C.Upstream(value="1"), "integer"),
        (lambda: _C.cost_finish(cost=0), r"cost_finish\(\) needs the argument features"),
        (lambda: _C.cost_finish(_C.Upstream(), cost=0), "expected .*FeatureSet, got .*Upstream"),
        (lambda: _C.cost_finish(None, cost=0), "expected .*FeatureSet, got NoneType"),
        (lambda: _C.cost_finish(None, features=None, cost=0), "twice"),
        (lambda: _C.cost_centre(f64=0), "needs the argument n"),
    ],
)
def test_a_call_that_does_not_fit_is_a_type_error(call, message):
    with pytest.raises(TypeError, match=message):
        call()
