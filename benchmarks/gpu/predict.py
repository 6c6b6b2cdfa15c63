"""Writes the sections "Machine code" and "Predicted beside measured" of docs/kernels.md.

    python benchmarks/gpu/predict.py            # prints both
    python benchmarks/gpu/predict.py --write    # puts them between their marks in docs/kernels.md

Counts come from tests/cuda_machine_code.json, measurements from docs/gpu.md, constants from costs.py; the model is
predicted_time.py. Nothing runs on a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from costs import H100, KNOWN, WARP_TILED
from page_targets import figure, table
from predicted_time import (
    Time,
    gradient_pass,
    iteration,
    known_rate,
    label_pass,
    projection,
    small_iteration,
)

ROOT = Path(__file__).resolve().parents[2]
COUNTS, MEASURED, PAGE = (
    ROOT / p for p in ("tests/cuda_machine_code.json", "docs/gpu.md", "docs/kernels.md")
)
ARCHITECTURE = "90"
MARKS = {name: (f"<!-- {name} -->", f"<!-- end of {name} -->") for name in ("machine code", "predicted")}

Counts = dict[str, Any]


def loop_of(counts: Counts, family: str, kernel: str) -> dict[str, int]:
    return counts["families"][family]["kernels"][kernel][ARCHITECTURE]


# ---- What is measured


def tables(text: str, title: str) -> Iterator[list[str]]:
    """Rows of the table below a title, without its head."""
    below = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    for line in [line for line in below.splitlines() if line.startswith("|")][2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def number(cell: str) -> float | None:
    match = re.match(r"[\d,.]+", cell)
    return float(match[0].replace(",", "")) if match else None


def measured_iterations(text: str) -> dict[int, dict[str, float | None]]:
    """N -> microseconds of forward, adjoint and gradient."""
    rows = (cells for cells in tables(text, "An iteration") if cells[0].isdigit())
    return {
        int(cells[0]): dict(zip(("forward", "adjoint", "gradient"), map(number, cells[2:5]), strict=True))
        for cells in rows
    }


def measured_labels(text: str) -> dict[str, float]:
    """Case -> share of a copy that the kernels reach."""
    rows = {cells[0]: number(cells[3]) for cells in tables(text, "Label transport")}
    return {case: share / 100 for case, share in rows.items() if share}


# ---- What is predicted


def predicted_iterations(counts: Counts) -> dict[int, dict[str, Time]]:
    found: dict[int, dict[str, Time]] = {}
    for size, plan in counts["plans"].items():
        n = int(size)
        found[n] = {}
        for way in ("forward", "adjoint"):
            loop = loop_of(counts, plan[way]["family"], plan[way]["kernel"])
            small = plan["regime"] == "registers"
            found[n][way] = (
                small_iteration(H100, loop) if small else iteration(H100, n, plan, plan[way], loop)
            )
        if plan["regime"] != "registers":
            side = plan["tile"]
            tile = loop_of(counts, "gradient", f"sinkhorn::gradient_kernel<float, {side // 16}, true>")
            found[n]["gradient"] = gradient_pass(H100, n, side, tile, 101 if n <= 8192 else 21)  # as speed.py
    return found


def label_cases(counts: Counts, shares: dict[str, float]) -> Iterator[tuple[str, float, float, str]]:
    """Case, microseconds predicted and measured, and what bounds it: of rows that a warp holds."""
    for case, share in shares.items():
        match = re.fullmatch(r"(\d+) x (\d+) (float32|bfloat16), (forward|(\d) gradient\(s\), .*)", case)
        if not match or not 512 < int(match[2]) <= 1024:
            continue
        rows, element = int(match[1]), 4 if match[3] == "float32" else 2
        size = rows * int(match[2]) * element
        grads = int(match[5] or 0)
        name = f"label_transport::warp_kernel<{'float' if element == 4 else '__nv_bfloat16'}, 4, 8>"
        passes = [label_pass(H100, rows, 2 * size, 0, loop_of(counts, "label, forward", name))]
        if grads:
            backward = loop_of(counts, "label, backward", name)
            passes.append(label_pass(H100, rows, 2 * size, grads * size, backward))
        counted = (2 + grads) * size  # as docs/gpu.md counts: each logit once, each gradient once
        measured = counted / (H100.copy_gb_s * 1e3) / share
        yield case, sum(one.total for one in passes), measured, passes[-1].bound_by


def predicted_projections(counts: Counts) -> dict[int, dict[str, Time]]:
    """Matrices of 4 x 4 -> forward and backward of 20 iterations."""

    def loops(*ways: str) -> list[dict[str, int]]:
        found = [(f"projection, {way}", "false" if way == "forward" else "true") for way in ways]
        return [
            loop_of(counts, title, f"doubly_stochastic::thread_kernel<float, 4, {back}>")
            for title, back in found
        ]

    forward, backward = loops("forward"), loops("kept", "adjoint")
    return {
        batch: {
            "forward": projection(H100, batch, 20, forward, 2 * 64.0 * batch),
            "backward": projection(H100, batch, 20, backward, 3 * 64.0 * batch),
        }
        for batch in (4096, 32768, 131072)
    }


# ---- What is shown


def beside(predicted: float, measured: float | None) -> list[str | None]:
    return [figure(predicted), figure(measured), f"{measured / predicted:.2f}" if measured else None]


def widths(loop: dict[str, int], what: str) -> str:
    """Bytes of a thread's loads, and how many."""
    found = {int(k.split()[-1]): v for k, v in loop.items() if k.startswith(what)}
    return ", ".join(f"{found[width]} x {width}" for width in sorted(found, reverse=True)) or "-"


def machine_code(counts: Counts) -> list[str]:
    found = [
        [row["what"], row["unit"], f"<= {row['limit']}", round(row["found"], 1),
         "reached" if row["found"] <= row["limit"] else f"**not reached**: {row['why_not']}"]
        for row in counts["targets"]
    ]  # fmt: skip
    text = [
        f"Of sm_90, by nvcc {counts['compiler']}, float32. What a size takes is that of the kernel that runs there.",
        "",
        *table(["target", "unit", "goal", "found", ""], found),
        "",
        "A trip of each loop, per warp: *units* is what a thread does in it. Loads are of a thread, number x bytes.",
        "",
    ]
    rows: dict[tuple[str, str], list[int]] = {}
    for way in ("forward", "adjoint"):
        for size, plan in counts["plans"].items():
            rows.setdefault((plan[way]["family"], plan[way]["kernel"]), []).append(int(size))
    for (title, kernel), sizes in tuple(rows.items()):
        if f"{title}, unbalanced" in counts["families"]:  # the same shape, but that all rows are kept or none
            name, _, shape = kernel.replace("owned_", "owned_unbalanced_").partition("<")
            number, quads, of_rows, keeps, *_ = shape.split(", ")
            kept = ", ".join([number, quads, of_rows, "0" if keeps == "2" else keeps])
            rows.setdefault((f"{title}, unbalanced", f"{name}<{kept}>"), []).extend(sizes)
    planned = {title for title, _ in rows}
    for title, family in counts["families"].items():
        for kernel in family["kernels"]:
            longest = not title.startswith("label") or kernel.endswith(", 8>")
            if longest and title not in planned:
                rows[title, kernel] = []
    found = []
    for (title, kernel), sizes in rows.items():
        loop, unit = loop_of(counts, title, kernel), counts["families"][title]["unit"]
        found.append([
            title, ", ".join(f"{n:,}" for n in sizes) or "-", f"`{kernel.split('::', 1)[1]}`",
            f"{loop['instructions'] / loop['units']:.1f} per {unit}", loop["units"], loop.get("exponential", 0),
            widths(loop, "global load"), widths(loop, "shared load"), loop.get("shuffle", 0), loop.get("barrier", 0),
            loop.get("spill", 0), loop["registers"],
        ])  # fmt: skip
    head = ["loop", "N", "kernel", "instructions", "units", "exponentials", "global loads", "shared loads"]
    text += table(
        [*head, "shuffles", "barriers", "spills", "registers"], [list(map(str, row)) for row in found]
    )
    text += ["", "Why each takes what it takes:", ""]
    text += [f"* *{title}*: {family['reason']}." for title, family in counts["families"].items()]
    return text


def predicted(counts: Counts, measured: str) -> list[str]:
    known = [
        [one.name, one.card.name, f"{figure(one.published)} {one.unit}", f"{figure(known_rate(one))} {one.unit}",
         f"{one.published / known_rate(one):.2f}", "sets `ISSUED`" if one is WARP_TILED else "", one.source]
        for one in KNOWN
    ]  # fmt: skip
    text = [
        "**Predicted, not measured.** First, kernels of others whose figures are published:",
        "",
        *table(["kernel", "card", "published", "predicted", "published / predicted", "", "source"], known),
        "",
        "Then our own, on an H100: microseconds per iteration, predicted beside [measured](gpu.md#an-iteration), and",
        "measured / predicted. *by* is what most of the predicted time goes to.",
        "",
    ]
    times, found = predicted_iterations(counts), []
    of_card = measured_iterations(measured)
    for n, ways in times.items():
        cells: list[Any] = [f"{n:,}"]
        for way in ("forward", "adjoint", "gradient"):
            time, spent = ways.get(way), of_card.get(n, {}).get(way)
            cells += (
                [*beside(time.total, spent), *([time.bound_by] if way != "gradient" else [])]
                if time
                else [None] * 3
            )
        found.append(cells)
    head = ["N = M"]
    for way in ("forward", "adjoint", "gradient"):
        head += [f"{way}, predicted", "measured", "ratio", *(["by"] if way != "gradient" else [])]
    text += table(head, found)
    labels = label_cases(counts, measured_labels(measured))
    text += ["", "The label losses, microseconds of kernels:", ""]
    text += table(
        ["N x K, type", "predicted", "measured", "ratio", "by"],
        [[case, *beside(guess, spent), by] for case, guess, spent, by in labels],
    )
    text += [
        "",
        "Doubly stochastic matrices, 4 x 4, 20 iterations, float32, microseconds of kernels, not measured:",
        "",
    ]
    text += table(
        ["matrices", "forward", "backward", "both", "by"],
        [
            [f"{batch:,}", *(figure(ways[way].total) for way in ("forward", "backward")),
             figure(sum(time.total for time in ways.values())), ways["backward"].bound_by]
            for batch, ways in predicted_projections(counts).items()
        ],
    )  # fmt: skip
    return text


def sections() -> dict[str, str]:
    counts = json.loads(COUNTS.read_text())
    return {
        "machine code": joined(machine_code(counts)),
        "predicted": joined(predicted(counts, MEASURED.read_text())),
    }


def joined(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def between(page: str, name: str) -> str:
    """What a page has between the marks of a section."""
    begin, end = MARKS[name]
    return page.split(begin, 1)[1].split(end, 1)[0].strip()


def written(page: str, texts: dict[str, str]) -> str:
    """The page with these sections between their marks."""
    for name, text in texts.items():
        begin, end = MARKS[name]
        before, rest = page.split(begin, 1)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/kernels.md")
    texts = sections()
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(), texts))
    else:
        print("\n\n".join(texts.values()))


if __name__ == "__main__":
    main()
