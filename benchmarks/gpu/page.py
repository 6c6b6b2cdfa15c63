"""Writes docs/gpu.md from what `gpu_check.sh` and `gpu_training.py` measured.

    python benchmarks/gpu/page.py RESULTS_FOLDER... [--out docs/gpu.md]

Reads results.jsonl and training.jsonl of each folder. A later row of a case replaces an earlier one, in the order
of the folders. A subject that was not measured gets no section; every figure comes from the files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import page_switches
from page_targets import Results, failure, figure, share, table, targets

DOCS = Path(__file__).resolve().parents[2] / "docs"
SMOKE_REGIMES = ("auto", "block", "resident", "sweep", "cluster")
WRITTEN = """
`sh benchmarks/gpu_check.sh` and `python benchmarks/gpu_training.py` measure all of it on yours; this page is
written by `benchmarks/gpu/page.py`. How the kernels work: [CUDA kernels](kernels.md).
""".strip()
SMOKE_LOSSES = ("streamed", "tensor cores", "linear label", "label", "panels", "loss", "batch")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from (json.loads(line) for line in path.read_text().splitlines() if line.strip())


def read(folders: list[Path]) -> Results:
    """The last row of every case; figures of two cards are never mixed."""
    results = Results({}, {})
    cards: set[str] = set()
    for folder in folders:
        for row in lines_of(folder / "results.jsonl"):
            key = row["mode"], row["case"]
            results.rows.pop(key, None)  # so that it takes its place among the later ones
            results.rows[key] = row
            cards |= {row["gpu"]} if "gpu" in row else set()
        for row in lines_of(folder / "training.jsonl"):
            results.training[row["batch"], row["method"]] = row
    if len(cards) > 1:
        raise SystemExit(f"page.py: these results are of several cards: {', '.join(sorted(cards))}")
    if not results.rows and not results.training:
        raise SystemExit("page.py: no results.jsonl or training.jsonl with rows in these folders")
    return results


def about(results: Results) -> list[str]:
    """The card and the software, as the rows tell them."""
    built = results.rows.get(("smoke", "device and build"), {})
    card = results.rows.get(("speed", "card"), {})
    words = []
    if name := card.get("gpu") or built.get("gpu"):
        words.append(f"one {name}")
    if "multiprocessors" in built:
        words.append(f"{built['multiprocessors']} multiprocessors, compute capability {built['capability']}")
    asked = next((key for key in card if key.startswith("name,")), None)
    if asked and card[asked].count(",") == asked.count(","):
        told = dict(zip(asked.split(","), (v.strip() for v in card[asked].split(",")), strict=True))
        words.append(f"driver {told['driver_version']}")
        clocks = f"SM clock {told['clocks.sm']} when asked, {told['clocks.max.sm']} at most"
        words.append(f"{clocks}, memory {told['clocks.mem']}, power limit {told['power.limit']}")
    version, _, cuda = str(card.get("torch") or built.get("torch", "")).partition("+cu")
    words += [f"torch {version}"] if version else []
    words += [f"CUDA {cuda[:-1]}.{cuda[-1]}"] if cuda.isdigit() else []
    text = [f"Measured on {', '.join(words)}.", ""] if words else []
    limits = []
    if copy := results.copy_gb_s:
        limits.append(f"a copy of 1 GiB moves {copy:,.0f} GB/s, read and written; below, *copy* means that")
    launch = results.rows.get(("speed", "a launch of torch"), {})
    if "eager_us" in launch:
        each = f"{figure(launch['eager_us'])} us, in a graph {figure(launch['in_graph_us'])} us"
        limits.append(f"a small kernel of torch takes {each}")
    return text + ([f"The limits of the card: {'; '.join(limits)}.", ""] if limits else [])


def iteration(results: Results) -> list[str]:
    found = []
    for case, row in results.matching("speed", "iteration, N = "):
        whole = row.get("whole_by_replay_us")
        if whole is None:
            continue
        passes = row.get("gradient_pass_us", {})
        depth = max((int(t) for t in passes), default=0)
        last = passes.get(str(depth))
        of_copy = row.get("of_copy", {})
        rates = " / ".join(
            f"{figure(of_copy[k] * results.copy_gb_s)} ({share(of_copy[k])})" if k in of_copy else "-"
            for k in ("forward", "adjoint")
        )
        found.append([
            case, None if "double" in case else row["floor_us"],
            row.get("forward_us"), row.get("adjoint_us"), last / depth if last else None,
            whole, rates if of_copy and results.copy_gb_s else "-",
        ])  # fmt: skip
    head = [
        "N = M",
        "floor",
        "forward",
        "adjoint",
        "gradient",
        "all, graph replay",
        "GB/s forward / adjoint (of copy)",
    ]
    return table(head, found)


def as_called(results: Results) -> list[str]:
    found = []
    for case, row in results.matching("speed", "loss and gradient, N = "):
        if "eager_ms" in row:
            n = case.split(",")[0]
            found.append(
                [n, row["eager_ms"], row["graph_ms"], row["kernels_ms"], row["floor_ms"], row["peak_mb"]]
            )
    return table(["N = M", "eager ms", "graph replay ms", "GPU time ms", "floor ms", "peak MB"], found)


def beside(results: Results) -> list[str]:
    found = []
    for (mode, case), row in results.rows.items():
        if mode != "peers" or "ratio" not in row:
            continue
        name, _, n = case.rpartition(", N = ")
        alike = row.get("ours_alike_ms")
        found.append([
            int(n), name, row["ms"], row["ours_ms"], f"{figure(row['ratio'])} x",
            f"{figure(row['ms'] / alike)} x" if alike else "-", row["value_differs"],
            f"{figure(row['peak_mb'])} / {figure(row['ours_peak_mb'])}",
        ])  # fmt: skip
    found.sort(key=lambda cells: cells[0])
    head = ["N = M", "peer", "peer ms", "ours ms", "ratio", "ratio, same objective", "loss differs by"]
    return table([*head, "peak MB, peer / ours"], found) + fewer_configurations(results)


def fewer_configurations(results: Results) -> list[str]:
    """Where flash-sinkhorn tuned over fewer configurations than the text says."""
    rows = results.matching("peers", "flash-sinkhorn, N = ")
    few = [
        f"{row['configurations']} at N = {int(n):,}"
        for n, row in rows
        if "ratio" in row and row.get("configurations", 12) < 12
    ]
    return (
        [f"flash-sinkhorn tuned over fewer configurations per kernel: {', '.join(few)}.", ""] if few else []
    )


def heads(results: Results) -> list[str]:
    found = []
    shape = re.compile(r"(.*?),? (\d+ x \d+ x \d+ \w+)(?:, (.*))?")
    for (mode, case), row in results.rows.items():
        told = shape.fullmatch(case)
        if told and "peak_mb" in row and (mode == "peers" or case.startswith("linear label")):
            name = told[1] if mode == "peers" else f"our linear label loss, {told[3]}"
            found.append([told[2], name, row["ms"], row["peak_mb"]])
    found.sort(key=lambda cells: cells[0])
    return table(["N x D x K", "loss", "ms", "peak MB"], found)


def label(results: Results) -> list[str]:
    found = [
        [case, row["ms"], share(row["of_copy"]), share(results.of_kernels(row)), row["peak_mb"]]
        for case, row in results.matching("speed", "label ")
        if "of_copy" in row
    ]
    return table(["N x K, type", "ms of a call", "of copy, call", "of copy, kernels", "peak MB"], found)


def many(results: Results) -> list[str]:
    found = []
    for (mode, case), row in results.rows.items():
        if mode == "speed" and "one_wave_ms" in row:
            waves = f"{figure(row['waves'])} times as long as one problem for each multiprocessor"
            found.append([case, row["graph_ms"], waves])
        if mode == "speed" and "20 iterations" in case and "peak_mb" in row:
            found.append([case, row["ms"], f"{figure(row['peak_mb'])} MB at most"])
    return table(["", "ms", ""], found)


def training(results: Results) -> list[str]:
    found, notes = [], []
    for (batch, name), row in results.training.items():
        if "ms" not in row:
            continue
        graph = row.get("graph_ms")
        found.append([
            batch, name, *(_to_ce(row, key) for key in ("ms", "device_ms", "host_ms")),
            graph if isinstance(graph, float) else "not captured" if graph else "-", row["peak_mib"],
        ])  # fmt: skip
        if row.get("waits", "never") != "never":
            notes.append(f"* batch {batch}, {name}: waits for the device: {row['waits']}")
        if isinstance(graph, str):
            notes.append(f"* batch {batch}, {name}: {graph}")
        copies, ours = row, results.training.get((batch, "published-code"), {})
        if name == "by copies" and "ms" in ours:
            notes.append(
                f"* batch {batch}: the published code's way takes {figure(copies['ms'] / ours['ms'])} times as long "
                f"as `published-code`, {figure(copies['device_ms'] / ours['device_ms'])} times on the device, with "
                f"{figure(copies['peak_mib'] / ours['peak_mib'])} times the memory"
            )
    looked = [row["waits"] for row in results.training.values() if "waits" in row]
    if looked:
        notes.append(f"* {looked.count('never')} of {len(looked)} kinds of step never waited for the device")
    head = ["batch", "method", "step ms", "device ms", "host ms", "graph ms", "peak MiB"]
    return table(head, found) + ([*notes, ""] if found and notes else [])


def _to_ce(row: dict[str, Any], key: str) -> str:
    ratio = row.get(f"{key}_to_ce")
    return figure(row[key]) + (f" ({ratio:.2f})" if ratio and row["method"] != "ce" else "")


def accuracy(results: Results) -> list[str]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (mode, case), row in results.rows.items():
        if mode == "smoke" and "value_error" in row:
            groups.setdefault(_group(case), []).append(row)
    found = []
    for (name, dtype), rows in groups.items():
        worst = [max(row[f"{part}_error"] for row in rows) for part in ("value", "gradient")]
        nearest = max(row[f"{p}_error"] / row[f"{p}_limit"] for row in rows for p in ("value", "gradient"))
        found.append([name, dtype, len(rows), *(f"{w:.1e}" for w in worst), share(nearest)])
    bits = [row["same_bits"] for row in results.rows.values() if "same_bits" in row]
    count = f"{sum(bits)} of {len(bits)} cases"
    replays = f"Replays of a captured graph on other numbers gave the bits of the call in {count}."
    lines = table(["", "type", "cases", "value", "gradient", "of the limit"], found)
    if any("own barrier" in name for name, _ in groups):
        lines += ["*own barrier* is the default of grids since; their other rows had the CUDA runtime's.", ""]
    return lines + ([replays, ""] if found and bits else [])


def _group(case: str) -> tuple[str, str]:
    """What a smoke case is of, and its type."""
    words = re.split(r"[ ,]+", case)
    dtype = next((word for word in ("f64", "f16", "bf16") if word in words), "f32")
    regime = next((word for word in SMOKE_REGIMES if word in words), None)
    if regime:
        apart = re.search(r"(own|library) barrier", case)
        return (f"{regime}, {apart[0]}" if apart else regime), dtype
    return next((name for name in SMOKE_LOSSES if case.startswith(name)), case), dtype


def tests(results: Results) -> list[str]:
    found = []
    for (mode, case), row in results.rows.items():
        counts = [row.get(f"tests_{k}", row.get(k)) for k in ("passed", "failed", "error", "skipped")]
        if mode == "correct" and isinstance(counts[0], int):
            found.append([case, *counts, failure(row) or "-"])
    return table(["part", "passed", "failed", "errors", "skipped", "how it ended"], found)


def sanitizers(results: Results) -> list[str]:
    found = []
    for (mode, case), row in results.rows.items():
        if mode == "sanitize" and "cases" in row:
            last = row.get("told", "").rpartition("; ")[2]
            found.append([case, row["cases"], row["seconds"], failure(row) or last or "it said nothing"])
    return table(["check", "cases", "seconds", "verdict"], found)


def tuning(results: Results) -> list[str]:
    sizes: dict[int, list[dict[str, Any]]] = {}
    for (mode, _), row in results.rows.items():
        if mode == "tune" and "setting" in row and not failure(row):
            sizes.setdefault(row["n"], []).append(row)
    found = []
    for n, rows in sorted(sizes.items()):
        best = min(rows, key=lambda row: row["graph_ms"])
        default = next((row["graph_ms"] for row in rows if row["default"]), None)
        words = ", ".join(f"{k} {v}" for k, v in _flat(best["setting"]).items())
        setting = "the default" if best["default"] else words
        times = f"{default / best['graph_ms']:.2f} x" if default else "-"
        found.append([n, len(rows), default, best["graph_ms"], times, setting])
    return table(["N = M", "settings", "default ms", "best ms", "quicker", "of"], found)


def _flat(setting: dict[str, Any]) -> dict[str, Any]:
    parts = (value if isinstance(value, dict) else {name: value} for name, value in setting.items())
    return {name: value for part in parts for name, value in part.items()}


def troubles(results: Results) -> list[str]:
    """Every row that failed or was left out, so that none is missing without a word."""
    rows = [(mode, case, row) for (mode, case), row in results.rows.items()]
    rows += [("training", f"batch {batch}, {name}", row) for (batch, name), row in results.training.items()]
    found = [[mode, case, failure(row) or row.get("left_out", "")] for mode, case, row in rows]
    found = [cells for cells in found if cells[2]]
    return table(["mode", "case", "what happened"], found)


Section = tuple[str, Callable[[Results], list[str]], str]
SECTIONS: tuple[Section, ...] = (
    ("Targets", targets, """
        Set before any kernel had run on a GPU. Ratios are a peer's time over ours; GPU time is the sum of
        the kernels' of 100 iterations, loss and gradient of x, D = 512."""),
    ("An iteration", iteration, """
        Microseconds of device time per iteration for a given cost, float32 unless said otherwise: that of
        many iterations less that of one. The floor is one exponential per element on the multiprocessors in
        use (up to 128 x 128 none is taken), or one read of a cost that does not fit on the chip.
        The sweep back is kept from ending early.
        *gradient* is the last pass, which makes dC, spread over the iterations; up to 128 x 128 the adjoint
        makes dC as well. *all, graph replay* times value and gradient as a whole. GB/s count one read of
        the cost per iteration, for costs above 60 MB."""),
    ("Loss and gradient", as_called, """
        `sinkhorn_loss` and its gradient with respect to x: float32, D = 512, 100 iterations, cosine.
        *eager* includes the host; *GPU time* is the sum over kernels, torch's matrix products among them.
        The floor is that of the iterations, forward and back."""),
    ("Beside other libraries", beside, """
        Loss and gradient of x as in the table above, called eagerly, each peer in a process of its own and
        timed only where its loss agrees. *ratio* is against `sinkhorn_loss` with its defaults, whose
        gradient goes through all iterations. flash-sinkhorn and GeomLoss compute the dual objective with
        the envelope's gradient; *same objective* is against ours doing that. flash-sinkhorn multiplies in
        TF32, its default, and tunes over 12 configurations per kernel instead of all. GeomLoss follows its
        own annealing, not 100 iterations."""),
    ("Linear heads", heads, """
        Loss and gradients of the features and of the student's weights. Liger's losses are other losses of
        the same shape: the times say what a fused linear head costs, not which loss is better."""),
    ("Label transport", label, """
        Forward, or forward and backward. *of copy* counts each logit as read once and each gradient as
        written once. The library reads the logits again in the backward, so a loss with gradients moves
        more than is counted; a forward only reads, which can be quicker than a copy. *call* is timed with
        its host work, *kernels* on the device alone."""),
    ("Batches and panels", many, ""),
    *((title, make, text) for title, (make, text) in page_switches.SECTIONS.items()),
    ("A training step", training, """
        Cached teacher features of 512, student MLP 768-1024-512, SGD. In brackets: times the step of
        cross-entropy. *by copies* is the published code's way: a deepcopy of the student each step, and
        POT's `sinkhorn2` through autograd. *without FA*: the FA loss replaced by a mean, so that its own time
        is apart. *graph* is a replay of the step captured in a CUDA graph."""),
    ("Errors against float64", accuracy, """
        Largest error over largest entry, the worst case of each group. A limit is twice the error of plain
        torch at the same type and a floor, or fixed for whole losses. `auto` is what the library chooses;
        in float32, up to 128 x 128, that is `registers`."""),
    ("Tests on the device", tests, "`tests/test_cuda_device.py` and the CUDA half of `tests/test_device_ops.py`."),
    ("Sanitizers", sanitizers, "compute-sanitizer over small cases of every kernel, our kernels only."),
    ("Tuning", tuning, """
        Replay of a graph of value and gradient for a given cost, 100 iterations. The best of many settings
        is quicker by chance as well: a few per cent mean nothing."""),
    ("Failed or left out", troubles, ""),
)  # fmt: skip


def page(results: Results) -> str:
    lines = ["# Measured on a GPU", "", *about(results)]
    lines += [*WRITTEN.splitlines(), ""]
    for title, make, text in SECTIONS:
        if rows := make(results):
            lines += [f"## {title}", "", *([" ".join(text.split()), ""] if text else []), *rows]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=DOCS / "gpu.md")
    options = parser.parse_args()
    text = page(read(options.folders))
    beside_it = options.out.with_suffix(".partial")
    beside_it.write_text(text)
    beside_it.replace(options.out)


if __name__ == "__main__":
    main()
