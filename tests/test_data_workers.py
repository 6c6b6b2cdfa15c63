"""Every data set goes to worker processes that are spawned: macOS, Windows, and Python from 3.14 on do that."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from clip_folders import picture, sound, write_ave, write_crema_d, write_ravdess
from speech_folders import write_folder
from test_data_any import write_table, write_tokenizer
from torch.utils.data import DataLoader

from ucmkd_fast.data import (
    FeatureBank,
    LabelledData,
    TensorData,
    UnpairedLoader,
    data_names,
    open_data,
)
from ucmkd_fast.data.extract import extract
from ucmkd_fast.data.mismatch import NoisyData
from ucmkd_fast.data.relabel import relabelled
from ucmkd_fast.models import mlp


def arrays(root, samples=12):
    random = np.random.default_rng(0)
    np.save(root / "x.npy", random.normal(size=(samples, 5)))
    np.save(root / "y.npy", np.arange(samples) % 3)
    return {"root": str(root / "x.npy"), "labels": str(root / "y.npy")}


def folder(root, make, suffix):
    random = np.random.default_rng(0)
    for name in ("dog/b", "dog/a", "cat/1", "cat/2"):
        make(root / f"{name}{suffix}", random)
    return {"root": str(root)}


def text(root):
    pytest.importorskip("transformers", reason="transformers is not installed")
    path = root / "table.tsv"
    path.write_text("said\tkind\nthe cat\tcat\na dog\tdog\nthe dog\tdog\n")
    write_tokenizer(root / "tokenizer")
    return {
        "root": str(path),
        "text": "said",
        "label": "kind",
        "tokenizer": str(root / "tokenizer"),
        "length": 6,
    }


def hugging_face(root):
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    datasets.disable_progress_bars()
    random = np.random.default_rng(0)
    picture(root / "one.png", random)
    cells = [{"bytes": (root / "one.png").read_bytes(), "path": None}] * 4
    columns = {"kind": ["cat", "dog"] * 2, "image": cells, "wave": [random.normal(size=900).tolist()] * 4}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.save_to_disk(root / "saved")
    return {"root": str(root / "saved"), "label": "kind", "column": "image", "image_size": 16}


def made(name: str, root) -> dict:
    """A small data set of this name: its description, without the name."""
    root.mkdir()
    if name == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
        return {"split": "train"}
    if name == "spoken-digits":
        speech = write_folder(root / "speech", speakers=("ann", "bob", "cat"), takes=2)
        return {"root": str(speech), "shares": [1, 1, 1], "split": "train"}
    if name in ("ravdess", "crema-d", "ave", "vggsound"):
        write = {"ravdess": write_ravdess, "crema-d": write_crema_d}.get(name, write_ave)
        return {"root": str(write(root / "clips")), "split": "train", "modality": "audio"}
    if name == "image-folder":
        return {**folder(root, picture, ".jpg"), "image_size": 16}
    if name == "audio-folder":
        return {**folder(root, sound, ".wav"), "size": [16, 16]}
    if name == "table":
        return {"root": str(write_table(root / "t.csv", ",")), "label": "kind", "columns": ["a", "b"]}
    return {"text": text, "features": arrays, "hugging-face": hugging_face}[name](root)


def same(data: LabelledData, other: LabelledData) -> None:
    rows = torch.arange(min(3, len(data)))
    for one, two in zip(data.batch(rows), other.batch(rows), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(data.drawn_batch(rows, (1, 2)), other.drawn_batch(rows, (1, 2)), strict=True):
        assert torch.equal(one, two)
    assert (data.classes, data.ids, data.groups) == (other.classes, other.ids, other.groups)


@pytest.mark.parametrize("name", data_names())
def test_every_registered_data_set_pickles_whole_in_parts_and_under_what_wraps_it(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path / "cache"))
    data = open_data({"name": name, **made(name, tmp_path / "made")})
    renamed = torch.roll(torch.arange(len(data.classes)), 1)
    wrapped = [data, data.subset([1, 0]), relabelled(data, renamed)]
    if data[0][0].is_floating_point():
        wrapped.append(NoisyData(data, 0.1, 0))
    for one in wrapped:
        same(one, pickle.loads(pickle.dumps(one)))


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_clips_pickle_with_all_that_is_done_to_them(tmp_path, modality):
    own = {"audio": {"size": [16, 16]}, "image": {"frames": 2, "image_size": 16}}[modality]
    spec = {"name": "ave", "root": str(write_ave(tmp_path / "ave")), "split": "train", "modality": modality}
    data = open_data({**spec, **own, "skip_bad": True})
    same(data, pickle.loads(pickle.dumps(data)))


def test_sounds_of_hugging_face_pickle(tmp_path):
    spec = {**hugging_face(tmp_path), "column": "wave", "rate": 8000, "size": [16, 16]}
    del spec["image_size"]
    data = open_data({"name": "hugging-face", **spec})
    same(data, pickle.loads(pickle.dumps(data)))


def test_what_lies_in_a_file_is_sent_as_its_place_there(tmp_path):
    array = np.random.default_rng(0).normal(size=(4000, 50))
    labels = torch.arange(4000) % 3
    small = 8 * 4000 + 4000  # bytes: the labels, and little more
    for name, stored in (
        ("c", array),
        ("fortran", np.asfortranarray(array)),
        ("big-endian", array.astype(">f4")),
    ):
        np.save(tmp_path / f"{name}.npy", stored)
        bank = FeatureBank(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), labels)
        for one in (bank, bank.subset(torch.arange(100, 200))):
            sent = pickle.dumps(one)
            assert len(sent) < small
            assert torch.equal(pickle.loads(sent).x, one.x)
    part = TensorData(
        np.load(tmp_path / "c.npy", mmap_mode="r")[10:20], labels[:10]
    )  # a view: sent as numbers
    assert torch.equal(pickle.loads(pickle.dumps(part)).x, part.x)


def test_samples_that_carry_a_graph_pickle_as_numbers():
    layer = torch.nn.Linear(3, 2)
    data = TensorData(layer(torch.randn(4, 3)), torch.arange(4) % 2)
    assert not data.x.requires_grad
    same(data, pickle.loads(pickle.dumps(data)))


def test_a_loader_pickles_and_draws_the_same_batches():
    data = TensorData(torch.randn(20, 3), torch.arange(20) % 2)
    loader = UnpairedLoader(data, data, batch_size=4, draw="class-matched", seed=3)
    again = pickle.loads(pickle.dumps(loader))
    for one, two in zip(loader, again, strict=True):
        assert torch.equal(one.x, two.x) and torch.equal(one.teacher_x, two.teacher_x)


@pytest.mark.parametrize("kind", ["pictures", "features"])
def test_spawned_workers_read_the_samples(tmp_path, kind):
    if kind == "pictures":
        data = open_data({"name": "image-folder", **made("image-folder", tmp_path / "made")})
    else:
        extract(
            mlp(5, 3), open_data({"name": "features", **arrays(tmp_path)}), tmp_path / "kept", {"by": "mlp"}
        )
        data = FeatureBank.load(tmp_path / "kept")
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    x = torch.cat([batch[0] for batch in loader])
    assert torch.equal(x, data.batch(torch.arange(len(data)))[0])
