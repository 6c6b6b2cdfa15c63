"""RAVDESS, CREMA-D, AVE, VGGSound: the same tensors as a slow direct reading, and what a bad file does."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")

from clip_folders import EMOTIONS, write_ave, write_crema_d, write_ravdess  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import signal  # noqa: E402
from scipy.io import wavfile  # noqa: E402

from ucmkd_fast.data import UnpairedLoader, open_data  # noqa: E402


def slow_picture(path, size=224):
    """A picture as the published code makes it in testing, a pixel at a time where it matters."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BILINEAR)) / 255.0
    planes = [
        (pixels[..., c] - mean) / deviation
        for c, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])
    ]
    return torch.tensor(np.stack(planes), dtype=torch.float32)


def slow_spectrogram(path):
    rate, samples = wavfile.read(path)
    assert rate == 16000
    wave = np.array([samples[i % len(samples)] / 32768 for i in range(160000)])
    power = signal.spectrogram(np.clip(wave, -1, 1), 16000, nperseg=512, noverlap=353)[2]
    log = np.log(power + 1e-7)
    return torch.tensor((log - log.mean()) / log.std(), dtype=torch.float32)[None]


def listed(root, name):
    return [line.split(",") for line in (root / name).read_text().split()]


def same(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance


def test_crema_d(tmp_path):
    root = write_crema_d(tmp_path)
    spec = {"name": "crema-d", "root": str(root), "splits": "published", "split": "test"}
    audio, image = open_data({**spec, "modality": "audio"}), open_data({**spec, "modality": "image"})
    rows = listed(root, "test.csv")
    assert audio.classes == ["ANG", "HAP", "SAD"] and audio.ids == image.ids == [row[0] for row in rows]
    assert audio.groups == [row[0][:4] for row in rows]
    assert [audio.classes[k] for k in audio.labels] == [row[1] for row in rows]
    x = audio.batch(torch.arange(12))[0]
    pictures = image.batch(torch.tensor([3, 11]))[0]
    for i, (name, _) in enumerate(rows):
        array = pickle.loads((root / "Audio-1004" / f"{name}.pkl").read_bytes())
        same(x[i], torch.from_numpy(array)[None], 0)
    for i, k in enumerate((3, 11)):
        frames = [root / "Image-01-FPS" / rows[k][0] / f"frame_{f}.jpg" for f in (1, 2)]  # the middle two
        same(pictures[i], torch.stack([slow_picture(path) for path in frames]))


def test_crema_d_by_actor(tmp_path):
    spec = {"name": "crema-d", "root": write_crema_d(tmp_path), "modality": "audio"}
    parts = [open_data({**spec, "split": split}) for split in ("train", "val", "test")]
    actors = [set(part.groups) for part in parts]
    assert [len(a) for a in actors] == [3, 1, 1] and len(set.union(*actors)) == 5
    assert sum(map(len, parts)) == 30
    published = [
        set(open_data({**spec, "splits": "published", "split": s}).groups) for s in ("train", "test")
    ]
    assert published[0] & published[1]  # the defect that the default avoids


def test_recordings_become_spectrograms(tmp_path):
    root = write_crema_d(tmp_path, ".wav")
    spec = {"name": "crema-d", "root": root, "splits": "published", "split": "test", "modality": "audio"}
    x = open_data(spec).batch(torch.tensor([0, 5]))[0]
    assert x.shape == (2, 1, 257, 1004)
    names = [row[0] for row in listed(root, "test.csv")]
    for i, k in enumerate((0, 5)):
        same(x[i], slow_spectrogram(root / "Audio-1004" / f"{names[k]}.wav"), 2e-3)


@pytest.mark.parametrize("name", ["ave", "vggsound"])
def test_ave_and_vggsound(tmp_path, name):
    root = write_ave(tmp_path, splits=("train", "val", "test") if name == "ave" else ("train", "test"))
    spec = {"name": name, "root": root, "split": "test"}
    audio = open_data({**spec, "modality": "audio"})
    image = open_data({**spec, "modality": "image", "frames": 1, "image_size": 32})
    rows = [line.split("&") for line in (root / "testSet.txt").read_text().splitlines()]
    assert audio.classes == ["Bark", "Church bell", "Male speech, man speaking"]
    for i, (event, clip, *_) in enumerate(rows):
        assert audio.classes[audio.labels[i]] == event and audio.ids[i] == clip
        array = pickle.loads((root / "Audio-1004-SE" / f"{clip}.pkl").read_bytes())
        same(audio[i][0], torch.from_numpy(array)[None], 0)
        same(image[i][0], slow_picture(root / "Image-01-FPS-SE" / clip / "1.jpg", 32))


def test_vggsounds_validation_is_held_out_of_its_training(tmp_path):
    root = write_ave(tmp_path, splits=("train", "test"))
    spec = {"name": "vggsound", "root": root, "modality": "audio"}
    train, val = (set(open_data({**spec, "split": split}).ids) for split in ("train", "val"))
    assert len(val) == 3 and len(train) == 9 and not train & val
    published = {**spec, "splits": "published"}
    assert open_data({**published, "split": "val"}).ids == open_data({**published, "split": "test"}).ids


def test_ravdess(tmp_path):
    root = write_ravdess(tmp_path)
    for split, listing in (("train", "dl"), ("val", "val"), ("test", "test")):
        spec = {"name": "ravdess", "root": root, "split": split}
        audio = open_data({**spec, "modality": "audio"})
        image = open_data({**spec, "modality": "image", "image_size": 40})
        rows = listed(root, f"data_file/spa_{listing}.csv")
        assert audio.classes == EMOTIONS and len(audio) == len(rows) == 16 and audio.ids == image.ids
        x = audio.batch(torch.arange(16))[0]
        for i, (sound, picture, said) in enumerate(rows):
            assert said in (str(int(audio.labels[i])), EMOTIONS[audio.labels[i]])
            assert audio.groups[i] == sound[-6:-4]
            array = (np.load(root / sound).astype(np.float64) + 10.59) / 85.66
            same(x[i], torch.tensor(array, dtype=torch.float32)[None])
            same(image[i][0], slow_picture(root / "vid_features" / picture, 40))


def test_recordings_in_other_formats_and_a_list_with_a_mark_of_byte_order(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    root = write_ave(tmp_path, suffix=".wav")
    spec = {"name": "ave", "root": root, "modality": "audio"}
    expected = open_data(spec)
    before = expected.batch(torch.arange(len(expected)))[0]
    for path in sorted((root / "Audio-1004-SE").glob("*.wav")):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".flac"), samples, rate)
        path.unlink()
    listing = root / "trainSet.txt"
    listing.write_text("\ufeff" + listing.read_text(), encoding="utf-8")  # as Windows' editor writes it
    data = open_data(spec)
    assert data.classes == expected.classes and data.ids == expected.ids
    same(data.batch(torch.arange(len(data)))[0], before)


def test_sizes_are_interpolated_or_sheared_as_published(tmp_path):
    root = write_crema_d(tmp_path)
    spec = {"name": "crema-d", "root": root, "modality": "audio", "split": "test", "splits": "published"}
    raw = open_data(spec)[0][0]
    fine = open_data({**spec, "size": [64, 50]})[0][0]
    assert fine.shape == (1, 64, 50)
    # Bilinear with antialiasing: a constant stays, and means of neighbours stay close.
    assert abs(fine.mean() - raw.mean()) < 0.02 and fine.std() < raw.std()
    sheared = open_data({**spec, "size": [64, 50], "preprocessing": "published-code"})[0][0]
    flat = raw.flatten()
    expected = torch.tensor([[flat[(r * 50 + c) % len(flat)] for c in range(50)] for r in range(64)])
    assert torch.equal(sheared[0], expected)


def test_training_is_augmented_by_its_key_alone(tmp_path):
    root = write_ravdess(tmp_path)
    for modality in ("audio", "image"):
        data = open_data({"name": "ravdess", "root": root, "modality": modality})
        rows = torch.tensor([2, 5])
        plain, drawn = data.batch(rows)[0], data.drawn_batch(rows, (0, 1))[0]
        assert not torch.equal(plain, drawn)
        assert torch.equal(drawn, data.drawn_batch(rows, (0, 1))[0])
        assert torch.equal(drawn[1], data.drawn_batch(rows[1:], (0, 1))[0][0])  # whoever is beside it
        assert not torch.equal(drawn, data.drawn_batch(rows, (0, 2))[0])


def test_threads_read_what_one_reads_and_the_loader_reads_ahead(tmp_path):
    root = write_ave(tmp_path)
    spec = {"name": "ave", "root": root, "image_size": 32}
    one, four = (open_data({**spec, "modality": "image", "workers": n}) for n in (1, 4))
    sound = open_data({"name": "ave", "root": root, "modality": "audio"})
    loaders = [
        UnpairedLoader(images, sound, batch_size=5, draw="class-matched", seed=3) for images in (one, four)
    ]
    for a, b in zip(*loaders, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.teacher_x, b.teacher_x)
    again = [loaders[0].batch_at(0, step).x for step in range(len(loaders[0]))]
    assert all(torch.equal(a, batch.x) for a, batch in zip(again, loaders[1], strict=True))


# What is wrong with a folder, what the error says, and whether reading shows it or opening.
def _break_missing(root):
    (root / "Audio-1004" / "1001_DFA_HAP_XX.wav").unlink()
    return "1001_DFA_HAP_XX"


def _break_wave(root):
    path = root / "Audio-1004" / "1001_DFA_HAP_XX.wav"
    path.write_bytes(path.read_bytes()[:30])
    return r"1001_DFA_HAP_XX\.wav: not a readable recording"


def _break_class(root):
    path = root / "train.csv"
    path.write_text(path.read_text().replace("1001_DFA_HAP_XX,HAP", "1001_DFA_HAP_XX,HPA"))
    return r"train\.csv, line 3: class 'HPA' is none of ANG, HAP, SAD"


@pytest.mark.parametrize("damage", [_break_missing, _break_wave, _break_class])
def test_a_bad_file_is_named_and_can_be_skipped(tmp_path, damage):
    root = write_crema_d(tmp_path, ".wav")
    message = damage(root)
    spec = {"name": "crema-d", "root": root, "modality": "audio", "splits": "published"}

    def read(**more):
        data = open_data({**spec, **more})
        return data, list(UnpairedLoader(data, batch_size=6))

    with pytest.raises((OSError, ValueError), match=message):
        read()
    with pytest.warns(UserWarning, match=message) as told:
        data, batches = read(skip_bad=True)
    assert len(told) == 1 and len(batches) == 3
    if damage is _break_class:
        assert len(data) == 17 and not data.bad
        return
    index = data.ids.index("1001_DFA_HAP_XX")
    assert len(data) == 18 and list(data.bad) == [index]
    # In its place: another one of its class.
    replaced = data[index][0]
    others = [i for i in range(18) if data.labels[i] == data.labels[index] and i != index]
    assert any(torch.equal(replaced, data[i][0]) for i in others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.batch(torch.arange(18))
    assert data.subset([index]).bad == {0: data.bad[index]}


def test_a_class_without_one_readable_sample_is_an_error(tmp_path):
    root = write_crema_d(tmp_path)
    for path in (root / "Audio-1004").glob("*SAD*"):
        path.write_bytes(b"x")
    data = open_data({"name": "crema-d", "root": root, "modality": "audio", "skip_bad": True})
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no sample of class 'SAD' can be read"):
        data.batch(torch.arange(len(data)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "video"}, "modality must be one of"),
        ({"split": "training"}, "did you mean 'train'"),
        ({"preprocessing": "published"}, "did you mean 'published-code'"),
        ({"modality": "image", "size": [3, 4]}, "pictures have image_size"),
        ({"size": 224}, "height and width"),
        ({"frame": 1}, "did you mean 'frames'"),
        ({"root": "/nowhere"}, "/nowhere: expected the folder"),
    ],
)
def test_what_is_refused(tmp_path, change, message):
    spec = {"name": "crema-d", "root": write_crema_d(tmp_path), "modality": "audio"}
    with pytest.raises((OSError, ValueError), match=message):
        open_data({**spec, **change})
