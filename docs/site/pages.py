"""A hook of mkdocs: pages that live outside docs/ (README, examples, ...) join the site, and links follow them.

Links stay right where people read the files in the repository; here they are mapped. A link to a source file
leads to a copy of it in the site, one to a folder becomes plain text.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from markdown.extensions import Extension
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "csrc/README.md",
    "csrc/sinkhorn/README.md",
)
LINK = re.compile(r"(?<=\])\((?![a-z]+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
NOT_RUN = re.compile(
    r"^(```\w+) no-run$", re.MULTILINE
)  # for the tests; the site takes it for no fence at all
COMMENT = re.compile(r"^<!-- .* -->$", re.MULTILINE)


class NoHtml(Extension):
    """Markdown without HTML inside."""

    def extendMarkdown(self, md: Any) -> None:  # noqa: D102, N802  (markdown's name)
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name at its end; read <P, C> as what it says, not as HTML."""
    config.markdown_extensions.append(NoHtml())
    named = str(config.nav)
    config.nav[-1]["Project"] += [
        page.name for page in sorted((ROOT / "docs").glob("*.md")) if f"'{page.name}'" not in named
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and whatever of the repository any page links to."""
    for name in ("README.md", *PAGES):
        if (ROOT / name).is_file():
            files.append(File.generated(config, _in_site(name), abs_src_path=str(ROOT / name)))
    for page in [file for file in files if file.is_documentation_page()]:
        for link in LINK.finditer(page.content_string):
            target = _target(page.src_uri, link["path"])
            if (ROOT / target).is_file() and files.get_file_from_path(_in_site(target)) is None:
                files.append(File.generated(config, _in_site(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site; comments are not for readers."""
    markdown = NOT_RUN.sub(r"\1", COMMENT.sub("", markdown))
    here = PurePosixPath(page.file.src_uri).parent

    def in_site(link: re.Match[str]) -> str:
        target = _target(page.file.src_uri, link["path"])
        if not (ROOT / target).is_file():
            return "" if (ROOT / target).is_dir() else link[0]  # mkdocs tells of what is not there
        up = "../" * len(here.parts)
        return f"({up}{_in_site(target)}{link['anchor'] or ''})"

    return LINK.sub(in_site, markdown)


def _in_site(name: str) -> str:
    """Where a file of the repository is in the site."""
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if name in PAGES else f"{name}.txt" if not name.endswith(".md") else name


def _target(page: str, link: str) -> str:
    """The file of the repository that a page of the site links to."""
    home = "README.md" if page == "index.md" else page if page in PAGES else f"docs/{page}"
    parts: list[str] = []
    for part in (PurePosixPath(home).parent / link).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
