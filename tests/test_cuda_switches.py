"""What `ucmkd doctor` says of the switches of the CUDA kernels: which there are, and which cards have run them."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import pytest
import torch

from ucmkd_fast import _native, doctor
from ucmkd_fast.cli import main
from ucmkd_fast.ops import cuda_switches as switches
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.terminal import Terminal

NAMES = [switch.name for switch in switches.SWITCHES]


def written_in(path: Path) -> dict[str, bool | None]:
    """Names of a module to which True, False or None is assigned."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            if value.value is None or isinstance(value.value, bool):
                found[target.id] = value.value
    return found


def test_the_table_has_every_switch_with_its_default():
    table = {switch.name: switch.default for switch in switches.SWITCHES}
    assert table == written_in(Path(_device.__file__)) and len(table) == len(switches.SWITCHES)


def test_what_is_proven_is_measured():
    """A card that the table names has its figures in docs/gpu.md."""
    text = (Path(__file__).parents[1] / "docs/gpu.md").read_text()
    for card in {card for switch in switches.SWITCHES for card in switch.proven}:
        assert re.search(rf"NVIDIA {card.model}\b", text), card
        assert f"compute capability {'.'.join(map(str, card.capability))}" in text


@pytest.fixture
def card(monkeypatch):
    """Let torch find a GPU of this name and capability."""

    def put(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return put


@pytest.mark.parametrize(
    "name, capability, proven",
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), True),
        ("NVIDIA H100 PCIe", (9, 0), True),
        ("NVIDIA GH200 480GB", (9, 0), False),
        ("NVIDIA A100-SXM4-80GB", (8, 0), False),
    ],
)
def test_whether_the_card_here_is_a_proven_one(card, name, capability, proven):
    card(name, capability)
    found = switches.examine()
    assert found["own_barrier"]["proven_here"] is proven
    assert not any(one["proven_here"] for one in found.values() if not one["proven"])
    said = switches.in_words(found["own_barrier"])
    assert ("not on the card here" in said) is not proven


def test_the_report_in_json_tells_what_is_on_now(capsys, monkeypatch):
    monkeypatch.setattr(_device, "clusters", True)
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)["cuda_switches"]
    assert list(found) == NAMES
    assert found["clusters"]["now"] is True and found["clusters"]["default"] is False
    assert found["streamed"]["now"] is None and found["own_barrier"]["proven"] == ["H100 (9.0)"]
    if not torch.cuda.is_available():
        assert {one["proven_here"] for one in found.values()} == {None}


def shown(architectures: list[str], monkeypatch) -> str:
    build = {**_native._C.build_info(), "cuda_architectures": architectures}
    monkeypatch.setattr(doctor, "_check", lambda *_: {"passed": True, "cases": 1})
    monkeypatch.setattr(doctor._native, "_C", type("Module", (), {"build_info": lambda: build}))
    file = io.StringIO()
    doctor.show(doctor.examine(), Terminal(file=file, width=400))
    return file.getvalue()


def test_people_are_told_of_them_where_there_are_kernels(monkeypatch):
    monkeypatch.setattr(_device, "clusters", True)
    with monkeypatch.context() as patch:
        assert not any(f"  {name} " in shown([], patch) for name in NAMES)
    text = shown(["90"], monkeypatch)
    line = {name: re.search(rf"^  {name} +(.*?) *$", text, re.MULTILINE)[1] for name in [*NAMES, "switches"]}
    assert line["own_barrier"].startswith("on; ") and "run on H100 (9.0)" in line["own_barrier"]
    assert line["clusters"].startswith("on (default: off); ")
    assert line["tensor_cores"].startswith("off; ") and "not yet run on a GPU" in line["tensor_cores"]
    assert line["streamed"].startswith("chosen by predicted time; ")


def test_the_way_to_turn_one_on_is_one(monkeypatch):
    """The line of Python that the doctor prints does what it says."""
    monkeypatch.setattr(_device, "clusters", False)
    monkeypatch.setattr(_device, "streamed", None)
    advice = switches.how_to(switches.examine())
    exec(re.search(r"To turn one on: (.*?)\. ", advice)[1], {})
    assert _device.clusters is True
    exec("from ucmkd_fast.ops._cuda import _device; " + re.search(r"default: (.*?) turns", advice)[1], {})
    assert _device.streamed is False


def test_nothing_is_advised_of_what_is_proven():
    found = {name: {**one, "proven": ["H100 (9.0)"]} for name, one in switches.examine().items()}
    assert switches.how_to(found) == ""
