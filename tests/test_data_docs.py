"""The Python of docs/data.md runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "data.md"


def test_the_pages_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    namespace: dict = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)  # noqa: S102  (our own page)

    import torch

    for name, value in {"cat/1.pt": 1.0, "dog/1.pt": 2.0}.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        torch.save(torch.full((2,), value), tmp_path / "root" / name)
    x, y = namespace["Folder"](tmp_path / "root").batch(torch.tensor([1, 0]))
    assert x.tolist() == [[2.0, 2.0], [1.0, 1.0]] and y.tolist() == [1, 0]
