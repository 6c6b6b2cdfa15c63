"""Writes docs/performance.md and docs/performance.png from what ``ucmkd bench --output`` measured.

    ucmkd bench --output build/performance.json
    python benchmarks/performance_page.py build/performance.json

A subject that was not measured gets no section; every figure comes from the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ucmkd_fast.bench.harness import in_words

DOCS = Path(__file__).resolve().parents[1] / "docs"

TEXT = {
    "sinkhorn": (
        "The Sinkhorn loss and its exact gradient",
        """
`sinkhorn_loss(x, y)` and its gradient with respect to x: float32, D = 512, cosine, 100 iterations.
Milliseconds, the median of the rounds (fresh inputs each), the lowest and the highest of them, and how many
times as long as ours. On Gaussian features the iterations reach a state in which nothing changes any more, bit
for bit, after about ten: `ucmkd_fast` does not repeat those, and its gradient stops where only rounding is
left; the others run all 100, with the same result. On clustered features with a small reg the iterations keep
moving. What
the products, the exponentials and the sweeps forward take at the speeds that the machine reaches is below each table
(one sweep where the iterations soon stop changing anything).
        """,
    ),
    "unbalanced": (
        "Unbalanced transport",
        """
`sinkhorn_loss(x, y, a, b, unbalanced=0.5)` and its gradient with respect to x: float32, D = 512, cosine, 100 plain
iterations, masses of sums 1 and 1.7. Each iteration takes a power per row and column more than a balanced one. Once
potentials move by a constant alone, the iterations that are left are not run but told in closed form. The balanced call
beside it, of exact marginals and with another value, repeats its own until no bit of them changes.
        """,
    ),
    "samples_loss": (
        "SamplesLoss",
        """
`ucmkd_fast.compat.geomloss.SamplesLoss` and its gradient with respect to x, against GeomLoss's own: its default
settings (p = 2, blur 0.05, scaling 0.5, debiased), points in the unit cube, float32.
        """,
    ),
    "converged": (
        "Run to a tolerance",
        """
`objective="regularized", grad="envelope", tol=1e-4` against GeomLoss (`p=2` on unit rows: the same cost; its
default scaling), loss and gradient. The marginal errors of both plans are summed over rows and columns.
        """,
    ),
    "overhead": (
        "What surrounds the kernels",
        """
One pair of numbers, one iteration, against an `autograd.Function` that allocates its results and computes
nothing.
        """,
    ),
    "bandwidth": (
        "Bandwidth of a sweep",
        """
An iteration reads the kernel matrix once. Its time is the difference of 25 and 5 iterations over 20; the
ceiling is `torch.sum` over a matrix of that size on the same threads in the same run.

Where the matrix comes from memory a sweep keeps up with the sum. While it fits the last-level cache the
first-level one is the limit: a sweep needs a row twice, for its sum and for the columns, and four rows of 2048
beside the two vectors are more than 32 KB, so about 2.5 cache lines move from the second level to the first for
each line of the matrix, one in a plain sum. Tried on one thread at 2048: prefetching the next rows in either pass
(-20 to +6 %), two rows at a time (-13 to +7 %), one (-18 to -7 %), both passes in one loop (slower).
        """,
    ),
    "threads": (
        "Where a second thread pays",
        """
A loss with its gradient (100 iterations), and ten iterations by panels, on two threads and on one (below the
threshold in csrc/sinkhorn/tasks.h both run on one, as do calls of little work, see [threads](sinkhorn.md#threads)).
        """,
    ),
    "busy": (
        "Busy machines",
        """
Loss and gradient of x on two threads: idle, and beside twice as many busy processes as there are processors. Single
calls are timed. A small call stays in its thread and waits for nobody. A larger one splits its work; where that cost
it time, because others kept a thread from its processor, the next ones use fewer threads for a while. Operations of
torch on more than 32,768 numbers, its matrix products among them, still wait for all of its threads.
        """,
    ),
    "accuracy": (
        "Accuracy",
        """
float32 against float64, relative (gradient: largest error over largest entry), the worst over shapes 64 x 64
and 130 x 257, features scaled by 0.001, 1 and 1000, and seeds; 60 iterations.
        """,
    ),
    "offset": (
        "Far from the origin, and near each other",
        """
float32 against float64 on the same float32 inputs: y is Gaussian (50 x 64) around `offset` in every feature, each x
lies beside its y, 1 to 0.00001 standard deviations off, the worst over those distances and five seeds. From the inner
products alone such distances would be lost.
        """,
    ),
    "memory": (
        "Memory",
        """
Growth of the peak resident memory in one loss with its gradient (100 iterations), in a process of its own, over
the size of one N x M matrix. What autograd keeps for the backward is counted apart; a small problem makes its
gradient along with the loss and keeps only that.
        """,
    ),
    "label_transport": (
        "Label losses",
        """
Forward and backward, float32. At kappa 0 the linear form is a plain cross-entropy, made with the work of both heads:
there it stands beside Liger's losses of linear heads, where liger_kernel is installed.
        """,
    ),
    "assign": (
        "Balanced assignments",
        """
Cosine scores, temperature 0.05, against the lines of SwAV in eager torch, which has no half precision of its own here:
it converts to float32.
        """,
    ),
    "doubly_stochastic": (
        "Doubly stochastic matrices",
        """
20 iterations, float32, of *batch* matrices n x n: against the same iterations in torch, eager and compiled, and against
`sinkhorn` on the batch with masses of 1.
        """,
    ),
    "estimate": (
        "What is expected and what it takes",
        """
`ucmkd estimate`, from ceilings measured in the same run, against a loss and its gradient of x: float32,
clustered features, every iteration runs.
        """,
    ),
    "bilevel": (
        "A training step",
        """
Cached teacher features of 512, student MLP 768-1024-512, SGD; *without FA* leaves the Sinkhorn term out. The
first row is the step of plain cross-entropy. The published code's order needs two passes of the student forward
and backward, the paper's three, plain cross-entropy and feature distillation one: what that alone makes of the
ratio to `feature` stands beside it.
        """,
    ),
}


def case_of(row: dict[str, Any]) -> str:
    """One case in words."""
    return ", ".join(f"{k} {v}" for k, v in row["case"].items())


def timings(row: dict[str, Any]) -> list[str]:
    """A table of one case."""
    lines = [
        f"**{case_of(row)}**",
        "",
        "| | ms | lowest - highest | times ours | differs by |",
        "|---|---|---|---|---|",
    ]
    if row["timings"][0]["name"] != "ucmkd_fast":
        lines[2] = "| | ms | lowest - highest | times the first | |"
    for t in row["timings"]:
        spread = f"{t['low_ms']:.3g} - {t['high_ms']:.3g}"
        error = f"{t['error']:.0e}" if t["error"] else ""
        lines.append(f"| {t['name']} | {t['median_ms']:.3g} | {spread} | {t['ratio']:.2f} | {error} |")
    lines += (
        [""] + [f"* {k}: {in_words(v)}" for k, v in row["extra"].items()] + ([""] if row["extra"] else [])
    )
    return lines


def section(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """A subject."""
    title, text = TEXT[name]
    lines = [f"## {title}", ""]
    for paragraph in text.strip().split("\n\n"):
        lines += [" ".join(paragraph.split()), ""]
    for row in rows:
        if row["timings"]:
            lines += timings(row)
    rows = [row for row in rows if not row["timings"]]
    if rows:
        keys = list(dict.fromkeys(k for row in rows for k in (*row["case"], *row["extra"])))
        lines += ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        for row in rows:
            values = row["case"] | row["extra"]
            lines.append("| " + " | ".join(str(values.get(k, "-")) for k in keys) + " |")
        lines.append("")
    if name == "accuracy":
        for part in ("loss", "gradient"):
            worst = max(rows, key=lambda row: row["extra"][part])
            lines += [f"Worst {part}: {worst['extra'][part]:.1e} ({case_of(worst)}).", ""]
    return lines


def plot(results: dict[str, Any], path: Path) -> None:
    """Time against N, and what a hundred plain sums over the matrix take at best."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in results["sinkhorn"]["rows"]:
        if row["case"]["features"] != "gaussian":
            continue
        for t in row["timings"]:
            lines.setdefault(t["name"], []).append((row["case"]["N"], t["median_ms"]))
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for name, points in lines.items():
        ours = name == "ucmkd_fast"
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2.5 if ours else 1.2)
    if "bandwidth" in results:
        ceiling = [
            (row["case"]["N"], 100 * row["timings"][0]["low_ms"])
            for row in results["bandwidth"]["rows"]
            if row["case"]["N"] <= 2048
        ]
        axes.plot(*zip(*ceiling, strict=True), "k--", linewidth=1, label="100 plain sums over the matrix")
    axes.set(xscale="log", yscale="log", xlabel="N = M", ylabel="loss and gradient, ms")
    axes.set_xticks([64, 256, 1024, 2048], ["64", "256", "1024", "2048"])
    axes.minorticks_off()
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Write both files."""
    results = json.loads(Path(sys.argv[1]).read_text())
    about = next(iter(results.values()))["machine"]
    commits = sorted({r["machine"]["commit"] for r in results.values()})
    lines = [
        "# Performance",
        "",
        f"""Measured on {about["threads"]} shared cores ({about["cpu"]}, {about["level"]} kernels),
torch {about["torch"]}, Python {about["python"]}, {about["date"]}, commit {", ".join(commits)}.
Implementations are timed in turn in the same rounds, after they agree. Other work ran on that machine now and
then: ratios say more than milliseconds. `ucmkd bench` measures all of it on yours; this page is written by
`benchmarks/performance_page.py`. On a GPU: [measured on a GPU](gpu.md).""",
        "",
    ]
    if "sinkhorn" in results:
        plot(results, DOCS / "performance.png")
        lines += ["![Time against N](performance.png)", ""]
    for name in TEXT:
        if name in results:
            lines += section(name, results[name]["rows"])
    page = DOCS / "performance.md"
    beside = page.with_suffix(".partial")
    beside.write_text("\n".join(lines).rstrip() + "\n")
    beside.replace(page)


if __name__ == "__main__":
    main()
