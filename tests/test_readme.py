"""The Python in README.md, CONTRIBUTING.md and docs/ runs, page by page, each block after the one before.

Links lead somewhere, and every method and every op has a page with formula, source, use and an example.
"""

import re
from pathlib import Path

import pytest

from ucmkd_fast.methods import available_methods, base, method_class

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.fixture(autouse=True)
def methods_of_the_pages(monkeypatch):
    """Pages register methods of their own: they are forgotten again."""
    monkeypatch.setattr("ucmkd_fast.methods.base._REGISTRY", dict(base._REGISTRY))


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


OPS = {
    "sinkhorn": ("sinkhorn", "sinkhorn_loss"),
    "class-conditional": ("class_conditional_loss",),
    "label-transport": ("label_transport_loss",),
    "linear-label-transport": ("linear_label_transport_loss",),
    "assign": ("assign",),
    "doubly-stochastic": ("doubly_stochastic",),
}


def check_page(path, *apis):
    """A page has a formula (set off, or in a line), its source, when to use it, an example, and the API."""
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^## When to use it$", text, re.MULTILINE), path
    assert re.search(r"^    \S|^CE\(", text, re.MULTILINE), path
    assert re.search(r"arXiv|\b(19|20)\d\d\b|baseline of every comparison", text), path
    assert any(not block["mark"].strip() for block in BLOCK.finditer(text)), path
    for api in apis:
        assert f"::: {api}\n" in text, path


def test_every_method_has_a_page():
    registered = available_methods()
    pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages == set(registered)
    index = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in registered:
        cls = method_class(name)
        check_page(ROOT / "docs" / "methods" / f"{name}.md", f"{cls.__module__}.{cls.__name__}")
        assert f"[`{name}`](methods/{name}.md)" in index


@pytest.mark.parametrize("page", OPS)
def test_every_op_has_a_page(page):
    check_page(ROOT / "docs" / f"{page}.md", *(f"ucmkd_fast.{op}" for op in OPS[page]))
