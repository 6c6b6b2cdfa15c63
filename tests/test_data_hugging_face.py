"""Hugging Face data sets, made here and saved to disk: the samples are those of the plain readers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_folders import picture, sound
from test_data_any import write_tokenizer

from ucmkd_fast.data import FeatureBank, TensorData, open_data

datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")

N = 6
KINDS = ["owl", "cat", "cat", "dog", "owl", "dog"]
LABELS = [2, 0, 0, 1, 2, 1]
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 4)).astype(np.float32)
WAVES = [(RANDOM.uniform(-0.5, 0.5, size=900 + k)).astype(np.float32) for k in range(N)]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def save(tmp_path, columns, **features):
    """One data set in a folder, and its description."""
    data = datasets.Dataset.from_dict({"kind": KINDS, **columns})
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    data.save_to_disk(tmp_path / "saved")
    return {"name": "hugging-face", "root": str(tmp_path / "saved"), "label": "kind"}


def files(tmp_path, make, suffix):
    """The content of a file of each sample, and the files."""
    paths = [tmp_path / f"{k}{suffix}" for k in range(N)]
    for path in paths:
        make(path, RANDOM)
    return [path.read_bytes() for path in paths], paths


def test_pictures(tmp_path):
    from ucmkd_fast.data.images import ImageTransform, read_image

    content, paths = files(tmp_path, picture, ".jpg")
    cells = [{"bytes": c, "path": None} for c in content]
    spec = {**save(tmp_path, {"image": cells}, image=datasets.Image()), "column": "image"}
    own = open_data({**spec, "image_size": 24})
    assert own.classes == ["cat", "dog", "owl"] and own.labels.tolist() == LABELS and own.reads_files
    expected = torch.stack([ImageTransform(24)(read_image(path)) for path in paths])
    assert torch.equal(own.batch(torch.arange(N))[0], expected)
    rows = torch.tensor([3, 1])
    drawn = own.drawn_batch(rows, (1, 2))[0]
    assert torch.equal(drawn, own.drawn_batch(rows, (1, 2))[0]) and not torch.equal(drawn, expected[rows])
    still = open_data({**spec, "image_size": 24, "augment": "none"})
    assert torch.equal(still.drawn_batch(rows, (1, 2))[0], expected[rows])


def test_pictures_that_lie_beside_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("owl/b.jpg", "cat/a.jpg", "cat/b.jpg"):
        picture(tmp_path / "folder" / name, RANDOM)
    spec = {"name": "hugging-face", "root": str(tmp_path / "folder"), "label": "label", "column": "image"}
    own = open_data({**spec, "part": "train", "image_size": 24})
    plain = open_data({"name": "image-folder", "root": str(tmp_path / "folder"), "image_size": 24})
    assert own.classes == plain.classes and torch.equal(own.labels, plain.labels)
    assert torch.equal(own.batch(torch.arange(3))[0], plain.batch(torch.arange(3))[0])


def test_broken_pictures_are_named_or_passed_over(tmp_path):
    content, _ = files(tmp_path, picture, ".jpg")
    cells = [{"bytes": c, "path": None} for c in content]
    cells[1]["bytes"], cells[3] = b"no picture", None
    spec = {**save(tmp_path, {"image": cells}, image=datasets.Image()), "column": "image", "image_size": 8}
    data = open_data(spec)
    with pytest.raises(ValueError, match="saved, row 1: not a readable picture"):
        data.batch(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="saved, row 3: expected a picture, there is none"):
        data[3]
    with pytest.warns(UserWarning, match="row 1: not a readable picture"):
        skipped = open_data({**spec, "skip_bad": True})
        x, y = skipped.batch(torch.tensor([1, 2]))
    assert torch.equal(x[0], x[1]) and y.tolist() == [0, 0] and list(skipped.bad) == [1]


@pytest.mark.parametrize("kind", ["recordings", "arrays with their rate", "lists"])
def test_sounds(tmp_path, kind):
    from ucmkd_fast.data.clips import read_sound
    from ucmkd_fast.data.spectrograms import log_spectrogram, resized

    options = {}
    if kind == "recordings":
        content, paths = files(tmp_path, sound, ".wav")
        cells = [{"bytes": c, "path": None} for c in content]
        spec = save(tmp_path, {"sound": cells}, sound=datasets.Audio())
        expected = [read_sound(path) for path in paths]
    else:
        rates = [16000, 8000, 16000, 44100, 16000, 16000] if kind != "lists" else [8000] * N
        cells = [{"array": w, "sampling_rate": r} for w, r in zip(WAVES, rates, strict=True)]
        if kind == "lists":
            cells, options = WAVES, {"rate": 8000}
        spec = save(tmp_path, {"sound": cells})
        expected = [log_spectrogram(torch.from_numpy(w), r) for w, r in zip(WAVES, rates, strict=True)]
    data = open_data({**spec, "column": "sound", **options})
    assert data[4][0].shape == (1, 257, 1004)
    rows = torch.tensor([4, 0, 3])
    assert torch.equal(data.batch(rows)[0][:, 0], torch.stack([expected[k] for k in rows]))
    small = open_data({**spec, "column": "sound", "size": [32, 48], **options})
    assert torch.equal(small[3][0][0], resized(expected[3], (32, 48)))


def test_integers_are_no_wave_by_mistake(tmp_path):
    cells = [[0, 12000, -30000] * 40] * N  # a list of integers does not say its scale
    data = open_data({**save(tmp_path, {"sound": cells}), "column": "sound", "rate": 8000})
    with pytest.raises(ValueError, match="row 0: not a readable recording: samples are int64"):
        data[0]


@pytest.mark.parametrize(
    "kind", ["lists", "typed sequence", "channels first", "channels last", "fixed size", "rate"]
)
def test_typed_waves_and_channels(tmp_path, kind):
    from ucmkd_fast.data.spectrograms import log_spectrogram

    whole = [(w * 2**15).astype(np.int16) for w in WAVES]
    value = datasets.Value("int16")
    if kind == "fixed size":
        whole = [w[:900] for w in whole]
    cells, feature = {
        "lists": (whole, [value]),
        "typed sequence": (whole, datasets.Sequence(value)),
        "channels first": ([[w, w] for w in whole], [[value]]),
        "channels last": ([[[v] for v in w] for w in whole], [[value]]),
        "fixed size": ([np.stack([w, w]) for w in whole], datasets.Array2D((2, 900), "int16")),
        "rate": (
            [{"array": w, "sampling_rate": 8000} for w in whole],
            {"array": datasets.Sequence(value), "sampling_rate": datasets.Value("int32")},
        ),
    }[kind]
    features = datasets.Features({"kind": datasets.Value("string"), "sound": feature})
    datasets.Dataset.from_dict({"kind": KINDS, "sound": cells}, features=features).save_to_disk(
        tmp_path / "s"
    )
    spec = {"name": "hugging-face", "root": str(tmp_path / "s"), "label": "kind", "column": "sound"}
    data = open_data({**spec, **({} if kind == "rate" else {"rate": 8000})})
    for k in (0, 3):
        expected = log_spectrogram(torch.from_numpy(whole[k].astype(np.float32) / 2**15), 8000)
        assert torch.allclose(data[k][0][0], expected, atol=1e-4)


@pytest.mark.parametrize("shape", ["(1, n)", "(2, n)", "(n, 2)", "at the scale of int16"])
def test_floats_with_channels_or_at_the_scale_of_int16(tmp_path, shape):
    from ucmkd_fast.data.spectrograms import log_spectrogram

    def cell(w):
        whole = {"(1, n)": w[None], "(2, n)": np.stack([w, w]), "(n, 2)": np.stack([w, w], 1)}
        return whole.get(shape, w * np.float32(2**15))

    cells = [{"array": cell(w), "sampling_rate": 8000} for w in WAVES]
    data = open_data({**save(tmp_path, {"sound": cells}), "column": "sound"})
    assert torch.equal(data[2][0][0], log_spectrogram(torch.from_numpy(WAVES[2]), 8000))


def test_transparent_pictures_and_deep_ones(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    import io

    from ucmkd_fast.data.images import normalised

    def content(array):
        buffer = io.BytesIO()
        image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    cells = [content(np.zeros((6, 6, 4), np.uint8)), content(np.full((6, 6), 4095, np.uint16))] * 3
    spec = {**save(tmp_path, {"image": cells}, image=datasets.Image()), "column": "image", "image_size": 6}
    white, black = (normalised(image.new("RGB", (6, 6), colour)) for colour in ("white", "black"))
    data = open_data({**spec, "depth": 12})
    assert torch.equal(data[0][0], white) and torch.allclose(data[1][0], white)
    assert torch.equal(open_data({**spec, "background": "black"})[0][0], black)


def test_rows_without_text_label_or_group(tmp_path):
    spec = {**save(tmp_path, {"z": list(X), "who": list("aabb") + [None, "c"]}), "column": "z"}
    with pytest.raises(
        ValueError, match="column 'who' must say who made each row; 1 of 6 are empty, .* row 5"
    ):
        open_data({**spec, "group": "who"})
    folder = tmp_path / "other"
    columns = {
        "sort": ["cat", "cat ", "None", None, "dog", "-1"],
        "what": ["a dog"] * 5 + [None],
        "z": list(X),
    }
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    spec = {"name": "hugging-face", "root": str(folder), "label": "sort"}
    with pytest.warns(UserWarning, match="column 'sort': 3 of 6 rows have no label"):
        data = open_data({**spec, "column": "z"})
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 0, -100, -100, 1, -100]
    with pytest.raises(ValueError, match="column 'what' has no text in 1 of 6 rows, the first is row 6"):
        open_data({**spec, "column": "what", "tokenizer": str(write_tokenizer(tmp_path / "tokenizer"))})


def test_text(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    said = ["A dog barks", "a cat sleeps a a a", "a", "dog", "cat", "barks"]
    spec = {**save(tmp_path, {"what": said}), "column": "what"}
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer"))
    x, y = open_data({**spec, "tokenizer": tokenizer, "length": 4}).batch(torch.tensor([0, 1]))
    assert x.dtype == torch.int64 and x.tolist() == [[2, 3, 5, 0], [2, 4, 1, 2]] and y.tolist() == [2, 0]
    with pytest.raises(ValueError, match="'what' holds text, which needs a tokenizer"):
        open_data(spec)


def test_numbers_and_cached_features(tmp_path):
    columns = {"z": list(X), "a": X[:, 0], "b": X[:, 1], "who": list("aabbcc")}
    spec = save(tmp_path, columns)
    data = open_data({**spec, "column": "z", "group": "who"})
    assert (
        type(data) is TensorData
        and torch.equal(data.x, torch.from_numpy(X))
        and data.groups == list("aabbcc")
    )
    assert torch.equal(open_data({**spec, "column": ["b", "a"]}).x, torch.from_numpy(X[:, [1, 0]]))
    bank = open_data({**spec, "column": "z", "features": True, "split": "train", "group": "who"})
    assert isinstance(bank, FeatureBank) and bank.holds_features and len(bank) < N


def test_class_labels_parts_and_rows_chosen_before(tmp_path):
    named = datasets.ClassLabel(names=["owl", "cat", "dog"])
    whole = datasets.Dataset.from_dict({"kind": [0, 1, 1, 2, 0, -1], "z": list(X)}).cast_column("kind", named)
    parts = {"train": whole.select([5, 3, 1]), "validation": whole.select([0])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    spec = {"name": "hugging-face", "root": str(tmp_path / "saved"), "label": "kind", "column": "z"}
    train = open_data({**spec, "part": "train"})
    assert train.classes == ["owl", "cat", "dog"] and train.labels.tolist() == [-100, 2, 1]
    assert torch.equal(train.x, torch.from_numpy(X[[5, 3, 1]]))
    assert open_data({**spec, "part": "train", "classes": ["cat", "dog", "owl"]}).labels.tolist() == [
        -100,
        1,
        0,
    ]
    for part in (None, "test"):
        with pytest.raises(ValueError, match=f"part must be one of train, validation, got {part!r}"):
            open_data({**spec, "part": part})
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "one")
    assert len(open_data({**spec, "root": str(tmp_path / "one")})) == N


def test_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    datasets.Dataset.from_dict({"kind": KINDS, "z": list(X)}).to_parquet(folder / "train.parquet")
    spec = {"name": "hugging-face", "root": str(folder), "label": "kind", "column": "z"}
    data = open_data({**spec, "part": "train"})
    assert torch.equal(data.x, torch.from_numpy(X)) and data.classes == ["cat", "dog", "owl"]
    assert torch.equal(open_data({**spec, "part": "train[:50%]"}).x, data.x[:3])
    with pytest.raises(ValueError, match=r'repository: .*Unknown split "test"'):
        open_data({**spec, "part": "test"})


def test_the_name_reaches_the_hub(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_dict({"kind": KINDS, "z": list(X)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    spec = {"name": "hugging-face", "root": "owner/set", "label": "kind", "column": "z"}
    open_data({**spec, "part": "train", "config": "small", "revision": "abc"})
    assert asked == [(("owner/set", "small"), {"split": "train", "revision": "abc"})]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "y"}, "no column 'y'; it has kind, z, d, s"),
        ({"label": "sort"}, "no column 'sort'"),
        ({"image_size": 8}, "image_size does not go with z, which holds numbers"),
        ({"column": "s", "features": True}, "features does not go with s, which holds text"),
        ({"column": ["z", "s"]}, "'s' must hold numbers"),
        ({"label": "d"}, r"column 'd' must hold labels \(integers\) or names"),
        ({"classes": ["cat", "dog"]}, "class 'owl' in column 'kind' is none of cat, dog"),
        ({"part": "train"}, "without parts .*got 'train'"),
        ({"revision": "abc"}, "config and revision choose by name"),
        ({"column": "z", "rate": 8000, "features": True}, "features does not go with z, which holds sounds"),
    ],
)
def test_what_is_refused(tmp_path, change, message):
    spec = save(tmp_path, {"z": list(X), "d": X[:, 0].tolist(), "s": KINDS})
    with pytest.raises(ValueError, match=rf"saved: .*{message}"):
        open_data({**spec, "column": "z", **change})
