"""Folders of pictures and sounds, tables, text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ucmkd_fast.data import open_data

ROWS = [("0.5", "2", "cat", "ann"), ("-1", "3e2", "dog", "bob"), ("7", "0", "cat", "bob")]


def write_table(path, delimiter):
    lines = [("a", "b", "kind", "who"), *ROWS]
    path.write_text("\n".join(delimiter.join(cells) for cells in lines) + "\n")
    return path


def test_folders_of_pictures_and_sounds(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    from clip_folders import picture, sound

    from ucmkd_fast.data.clips import read_sound
    from ucmkd_fast.data.images import ImageTransform, read_image

    random = np.random.default_rng(0)
    for name in ("dog/b.jpg", "dog/more/a.png", "cat/1.jpg"):
        picture(tmp_path / "images" / name, random)
    for name in ("dog/b.wav", "cat/1.wav"):
        sound(tmp_path / "sounds" / name, random)
    images = open_data({"name": "image-folder", "root": tmp_path / "images", "image_size": 24})
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [0, 1, 1]
    assert images.ids == ["cat/1", "dog/b", "dog/more/a"]
    expected = ImageTransform(24)(read_image(tmp_path / "images" / "dog" / "more" / "a.png"))
    assert torch.equal(images[2][0], expected)
    sounds = open_data({"name": "audio-folder", "root": tmp_path / "sounds", "size": [64, 64]})
    assert sounds.batch(torch.tensor([0, 1]))[0].shape == (2, 1, 64, 64)
    whole = open_data({"name": "audio-folder", "root": tmp_path / "sounds"})
    assert torch.equal(whole[1][0][0], read_sound(tmp_path / "sounds" / "dog" / "b.wav"))
    (tmp_path / "sounds" / "cat" / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"cat/1\.wav: not a readable recording"):
        whole.batch(torch.tensor([0]))
    with pytest.raises(ValueError, match="in a subfolder per class, found none: 'cat' holds 1 .jpg"):
        open_data({"name": "audio-folder", "root": tmp_path / "images"})


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        a, b, label, who = zip(*ROWS, strict=True)
        columns = {"a": [float(v) for v in a], "b": [float(v) for v in b], "kind": label, "who": who}
        parquet.write_table(pyarrow.table(columns), path)
    else:
        write_table(path, "," if kind == "csv" else "\t")
    data = open_data({"name": "table", "root": str(path), "label": "kind", "group": "who"})
    assert data.x.tolist() == [[0.5, 2.0], [-1.0, 300.0], [7.0, 0.0]]
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 0]
    assert data.groups == ["ann", "bob", "bob"]
    one = open_data(
        {"name": "table", "root": path, "label": "kind", "columns": ["b"], "classes": ["dog", "cat"]}
    )
    assert one.x.tolist() == [[2.0], [300.0], [0.0]] and one.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "kinds"}, "no column 'kinds'; it has a, b, kind, who"),
        ({}, r"table\.csv: column 'who' must hold numbers"),
        ({"group": "who", "classes": ["cat"]}, r"row 2: class 'dog' in column 'kind' is none of cat"),
        ({"root": "none.csv"}, r"none\.csv: expected a table"),
    ],
)
def test_tables_that_are_refused(tmp_path, change, message):
    path = write_table(tmp_path / "table.csv", ",")
    with pytest.raises((OSError, ValueError), match=message):
        open_data({"name": "table", "root": path, "label": "kind", **change})
    path.write_text("a,kind\n1,cat\n2\n")
    with pytest.raises(ValueError, match="line 3 has 1 cells, expected 2"):
        open_data({"name": "table", "root": path, "label": "kind"})


def write_tokenizer(folder):
    """A tokenizer of four words."""
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3, "cat": 4, "barks": 5}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_text_becomes_tokens(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = write_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "said.tsv"
    path.write_text("what\tkind\nA dog barks\tdog\na cat sleeps a a a\tcat\n")
    spec = {"name": "text", "root": path, "text": "what", "label": "kind", "tokenizer": str(folder)}
    x, y = open_data({**spec, "length": 4}).batch(torch.tensor([0, 1]))
    assert x.dtype == torch.int64 and x.tolist() == [[2, 3, 5, 0], [2, 4, 1, 2]] and y.tolist() == [1, 0]
