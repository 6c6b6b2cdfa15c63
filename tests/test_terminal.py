"""What people name things is shown as it stands: on terminals, pages and pictures, whatever the encoding."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from rich.markup import render

from ucmkd_fast.cli import app, main
from ucmkd_fast.compare import Experiment
from ucmkd_fast.compare.results import gather
from ucmkd_fast.compare.tables import show
from ucmkd_fast.extras import OPTIONAL, need
from ucmkd_fast.run import evaluation
from ucmkd_fast.terminal import Bar, Row, Styled, Terminal, bold
from ucmkd_fast.text import in_html, in_markdown, visible

PACKAGE = Path(__file__).parents[1] / "ucmkd_fast"
HOSTILE = (
    "[/x]",
    "[bold]a[/]",
    "a\\[b]",
    ":dog:",
    "[link=http://x]",
    "[@click=f()]",
    "{note}",
    "%s",
    "$a$",
    "_a",
)
HIDDEN = {
    "\x1b[31mred": "\\x1b[31mred",
    "a\nb": "a\\nb",
    "a\rb": "a\\rb",
    "\u202egnp": "\\u202egnp",
    "\udcff": "\\udcff",
}


def said(*parts, **options):
    file = io.StringIO()
    Terminal(file=file, width=200).say(*parts, **options)
    return file.getvalue()


def calls_and_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name.partition('.')[0]}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield f"import {node.module.partition('.')[0]}"
        elif isinstance(node, ast.Call):
            yield f"{ast.unparse(node.func)}()"


def test_only_the_terminal_prints():
    """From the syntax trees: no other module uses rich, and what prints otherwise is listed here with its reason."""
    plain = {
        "cli/__init__.py": {"typer.echo()"},  # the version
        "cli/messages.py": {"print()"},  # one line of `visible` text
        "cli/terminal.py": {"sys.stdout.write()"},  # JSON, in ASCII
        "bench/estimate.py": {"print()"},  # a number for the process that started it
        "bench/harness.py": {"print()"},
        "compat/_stopping.py": {"print()"},  # numbers, as POT's verbose=True
        "data/espeak_worker.py": {"print()"},  # to the process that started it
        "terminal.py": {"self._console.print()"},
    }
    ways = ("print", "echo", "secho", "stdout.write", "stderr.write", "pprint", "basicConfig")
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        found = set(calls_and_imports(path))
        assert name == "terminal.py" or "import rich" not in found, name
        printing = {one for one in found if one.removesuffix("()").endswith(ways)}
        assert printing <= plain.get(name, set()), name


def test_the_terminal_itself_parses_nothing():
    tree = ast.parse((PACKAGE / "terminal.py").read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not [
        name for name in calls if name.endswith(("from_markup", "from_ansi", "render_str", "print_json"))
    ]
    (console,) = [node for name, node in calls.items() if name == "Console"]
    off = {key.arg for key in console.keywords if getattr(key.value, "value", None) is False}
    assert off == {"markup", "emoji", "highlight"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_said_as_it_stands(text):
    assert said(text) == f"{text}\n" == said(bold(text)) == said(text, style="dim")
    file = io.StringIO()
    terminal = Terminal(file=file, width=200)
    terminal.table(
        (text, f"vs {text}"), [Row((text, bold(text)), dim=True), Row((Styled(text, "red"), "1"), ends=True)]
    )
    terminal.facts([(text, [text, bold(text)])])
    assert file.getvalue().count(text) == 8
    screen = io.StringIO()
    shown = Terminal(file=screen, width=200)
    shown._console._force_terminal = True
    with Bar(shown, text, 2, keep=True) as bar:
        bar.note(f"note {text}")
        bar.advance()
    assert f"note {text}" in screen.getvalue() and screen.getvalue().count(text) >= 2
    assert shown.status(text).status.plain == text


@pytest.mark.parametrize(("text", "shown"), HIDDEN.items())
def test_what_would_move_the_cursor_or_hide_is_made_visible(text, shown):
    assert visible(text) == shown and said(text) == f"{shown}\n"
    assert in_html(f"<b>{text}") == f"&lt;b&gt;{shown}"
    assert "\n" not in in_markdown(text) and in_markdown(text).isprintable()


@pytest.mark.parametrize(
    "text", ["naïve", "数字 七", "ہفتہ", "👩‍🔬", "می‌خواهم", "C:\\new", "a b", "a\u3000b"]
)
def test_letters_of_any_script_stay(text):
    assert visible(text) == text and said(text) == f"{text}\n"


@pytest.mark.parametrize(
    "text",
    ["a|b", "`a`", "*a*", "_a_", "a_b_c", "[a](b)", "<script>", "a&lt;b", "$a$", ":dog:", "~~a~~", "a\nb"],
)
def test_markdown_shows_it_literally(text):
    markdown = pytest.importorskip("markdown", reason="Markdown, which comes with mkdocs, is not installed")
    html = markdown.markdown(
        f"| {in_markdown(text)} | 2 |\n|---|---|\n| {in_markdown(text)} | 4 |", extensions=["tables"]
    )
    cells = [one.partition("<")[0] for one in html.replace("<td>", "<th>").split("<th>")[1:]]
    assert len(cells) == 4 and cells[0] == cells[2] and cells[1] == "2"
    import html as of_html

    assert of_html.unescape(cells[0]).replace("\\~", "~") == visible(text)


def test_help_is_not_markup():
    """typer reads help as rich's markup: ours must mean the same without."""
    command = typer.main.get_command(app)
    texts = [command.help, *(one.help for one in command.commands.values())]
    for one in (command, *command.commands.values()):
        texts += [getattr(param, "help", None) for param in one.params]
    for text in filter(None, texts):
        assert render(text).plain == text


def test_how_to_install_keeps_its_brackets(monkeypatch, capsys):
    """Said by doctor, by plans and by errors."""
    for module, (_, _, extra) in OPTIONAL.items():
        with monkeypatch.context() as patch, pytest.raises(ImportError) as error:
            patch.setitem(sys.modules, module, None)
            need(module)
        assert f"'ucmkd-fast[{extra}]'" in said(str(error.value))
    monkeypatch.setattr(
        "ucmkd_fast.doctor.installed", lambda: dict.fromkeys(one[0] for one in OPTIONAL.values())
    )
    with pytest.raises(SystemExit):
        main(["doctor"])
    out = "".join(capsys.readouterr().out.split())
    assert all(f"'ucmkd-fast[{extra}]'" in out for _, _, extra in OPTIONAL.values())


@pytest.mark.parametrize("text", [*HOSTILE, *HIDDEN])
def test_classes_of_any_name_are_measured_and_said(text):
    found = {
        "run": f"runs/{text}", "weights": "last.safetensors", "accuracy": 0.5, "samples": 4, "part": "test",
        "loss": 1.0, "classes": [text, "b"], "per_class_accuracy": [0.5, None], "confusion": [[1, 1], [0, 0]],
    }  # fmt: skip
    file = io.StringIO()
    evaluation.show(Terminal(file=file, width=400), found)
    assert file.getvalue().count(visible(text)) == 3 and file.getvalue().count("\n") == 3


def hostile_experiment(folder):
    base = {
        "student": {"data": {"name": "digits"}, "model": {"name": "digit-cnn", "width": 8}},
        "teacher": {"data": "digits", "model": "digit-cnn", "train": {"epochs": 1}},
        "train": {"epochs": 1, "steps_per_epoch": 1},
    }
    labels = {
        f"m{i} {text}": {"name": "ce", "set": {"train.lr": 0.001 * (i + 1)}}
        for i, text in enumerate([*HOSTILE, *HIDDEN])
    }
    values = {
        "title": "T [/x] | `t`", "baseline": "m0 [/x]", "seeds": 2, "base": base, "methods": labels,
        "settings": {"s1 [/x]|": {"train.momentum": 0.5}, "s2 \x1b[31m": {}},
    }  # fmt: skip
    (folder / "e.yaml").write_text(yaml.safe_dump(values))
    return Experiment.load(folder / "e.yaml")


def test_a_comparison_of_hostile_labels_is_said_and_written(tmp_path):
    experiment = hostile_experiment(tmp_path)
    cells = list(experiment.cells())
    random = np.random.default_rng(0)
    found = {
        cell.folder: {"accuracy": random.random(), "config": {}, "weights": "", "samples": {"test": 50}}
        for cell in cells
    }
    comparison = gather(experiment, cells, found)
    file = io.StringIO()
    show(Terminal(file=file, width=100), comparison)
    text = file.getvalue()
    assert (
        all(visible(c.label) in text for c in experiment.contenders)
        and "\x1b" not in text
        and "\u202e" not in text
    )
    assert "50 samples: 2 points each" in " ".join(text.split())
    page = comparison.markdown()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + len(cells) // 4)  # each name takes one row, in either setting
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}
    page.encode("utf-8")
    json.dumps(comparison.plain())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_another(encoding, tmp_path):
    """In a process of its own, whose standard output has that encoding."""
    lines = (
        "from ucmkd_fast.terminal import *",
        "write_what_can_be_written()",
        "t = Terminal(width=60)",
        "t.say('±2 • ≤ 数字 \\udcff')",
        "t.table(('a', 'b'), [Row(('数字', '± 1'))])",
        "import sys; print('… 数字', file=sys.stderr)",
    )
    environment = {"PYTHONIOENCODING": encoding, "PATH": ""}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    out = done.stdout.decode(encoding)
    assert "\\udcff" in out and ("±2" in out or "+-2 *" in out)
    assert ("数字" in out) if encoding == "utf-8" else ("\\u6570" in out)


def test_an_error_of_a_hostile_name_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["eval", "no\x1b[31m\nwhere[/x]"])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out and err.count("\n") == 1
    assert "[/x]" in err and "\x1b" not in err
