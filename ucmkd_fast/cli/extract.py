"""``ucmkd extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJson, console, print_json


def extract(
    description: Annotated[Path, typer.Argument(help="YAML with data: and model:, and weights: a file.")],
    output: Annotated[Path, typer.Option(help="Folder for the features.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Run an encoder once over a data set and keep its features, for a teacher that need not run again."""
    from ..config import check_keys, read_yaml
    from ..data import open_data
    from ..data.extract import extract as run
    from ..models import build_model
    from ..models.hugging_face import commit_of
    from ..run.files import load_weights

    told = read_yaml(description)
    if not isinstance(told, dict) or not {"data", "model"} <= set(told):
        raise ValueError(f"{description}: expected data: and model:, each a mapping")
    check_keys(told, ["data", "model", "weights"], f"key of {description}:")
    data = open_data(told["data"])
    model = build_model(told["model"], classes=len(data.classes))
    if told.get("weights"):
        weights = Path(told["weights"])
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: expected weights in a safetensors file, there is none")
        load_weights(model, weights)
    commit = commit_of(model)
    about = told if commit is None else {**told, "encoder_revision": commit}
    new = run(model, data, output, about, batch_size=batch_size)
    if as_json:
        print_json({"folder": str(output), "samples": len(data), "new": new})
    else:
        word = "features written to" if new else "features are already in"
        console(False).say(f"{len(data)} {word} {output}", wrap=False)
