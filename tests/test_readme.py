"""The Python in README.md and docs/ runs, page by page, each block after the one before; links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_examples_run(page, tmp_path, monkeypatch):
    """Blocks marked ``python no-run`` (they need files that only a user has) must at least compile."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict = {"__name__": "page"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], str(page), "exec")
        if block["mark"].strip() != "no-run":
            exec(code, namespace)  # noqa: S102  (our own page)


def test_the_readme_has_its_two_examples():
    blocks = list(BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(blocks) == 2 and not any(block["mark"].strip() for block in blocks)
    for block in blocks:  # "ten lines"
        code = [
            line for line in block["code"].splitlines() if line and not line.startswith(("import", "from"))
        ]
        assert len(code) <= 10


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"
