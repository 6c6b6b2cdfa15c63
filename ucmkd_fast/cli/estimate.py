"""``ucmkd estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from .terminal import AsJson, console, print_json


def estimate(
    n: Annotated[int, typer.Option("--n", help="Rows of x, of all devices.", show_default=False)],
    m: Annotated[int, typer.Option("--m", help="Rows of y, of all devices.", show_default=False)],
    d: Annotated[int, typer.Option("--d", help="Width of the features.", show_default=False)],
    iterations: Annotated[int, typer.Option(help="max_iter; all of them are taken to run.")] = 100,
    batch: Annotated[int, typer.Option(help="Problems of this size in one call.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="float32 or float64; half precision is computed in float32.")
    ] = "float32",
    memory_budget: Annotated[
        int | None,
        typer.Option(
            help="Bytes, as in sinkhorn_loss; by default a quarter of the free memory.", show_default=False
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(help="Processes that share the rows, each on a machine like this one.")
    ] = 1,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure this machine again.")] = False,
    as_json: AsJson = False,
) -> None:
    """How sinkhorn_loss would run a problem on this machine's CPU, its memory and time with the gradient of x."""
    from dataclasses import asdict

    from ..bench.ceilings import DTYPES, ceilings
    from ..bench.cost_model import REGIMES, Size
    from ..bench.cost_model import estimate as estimate_of
    from ..ops.checks import choice

    choice("dtype", dtype, list(DTYPES))
    size = Size(n, m, d, iterations, batch, devices, memory_budget, DTYPES[dtype])
    limits = ceilings(size.dtype, recalibrate)
    found = estimate_of(size, limits)
    if as_json:
        case = {**asdict(size), "dtype": dtype}
        print_json({"size": case, "estimate": found.as_dict(), "ceilings": asdict(limits)})
        return
    out = console(as_json)
    rows = f", {found.panel_rows} rows at a time" if found.panel_rows and "panels" in found.regime else ""
    lines = [
        f"regime   {found.regime}: {REGIMES[found.regime]}{rows}",
        f"memory   {_bytes(found.memory)} beyond the features (dense matrices: {_bytes(found.matrices)})",
        f"time     {_seconds(found.seconds)} for the loss and its gradient",
        *(f"           {_seconds(seconds):>8s}  {name}" for name, seconds in found.parts.items()),
    ]
    if not limits.alone:
        lines.append(
            f"note     measured while other work ran ({limits.share:.0%} of the processors): too long"
        )
    for line in lines:
        out.say(line, wrap=False)


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            break
    return f"{seconds * scale:.3g} {unit}"
