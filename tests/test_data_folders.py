"""Folders as people keep them: hidden files, links, other endings, names that collide."""

from __future__ import annotations

import pickle
import unicodedata
import warnings

import pytest
import torch

from ucmkd_fast.data import open_data
from ucmkd_fast.data.file_tree import files_by_class


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root):
    return files_by_class(root, {".png", ".jpg"}, "pictures")


def silent(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return found(root)


def test_what_is_hidden_or_the_systems_is_passed_over_at_any_depth(tmp_path):
    hidden = [
        ".git/a.png",
        ".ipynb_checkpoints/a.png",
        "__MACOSX/cat/._1.png",
        "cat/.ipynb_checkpoints/1.png",
    ]
    hidden += [
        "cat/._1.png",
        "cat/.DS_Store",
        "cat/deep/__MACOSX/1.png",
        "cat/deep/.hidden/1.png",
        "cat/Thumbs.db",
    ]
    write(tmp_path, "cat/1.png", "cat/deep/2.PNG", "dog/1.jpg", *hidden)
    own = silent(tmp_path)
    assert own.classes == ["cat", "dog"] and own.ids == ["cat/1", "cat/deep/2", "dog/1"]
    assert own.labels.tolist() == [0, 0, 1]


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    root = write(tmp_path / "root", "cat/1.png")
    write(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "itself").symlink_to(root / "cat")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    own = silent(root)
    assert own.classes == ["cat", "dog"]
    assert {"cat/1", "cat/more/2", "cat/more/deep/3", "dog/2", "dog/deep/3"} <= set(own.ids)
    assert len(own.ids) < 20


def test_a_link_to_nothing_is_a_sample_that_cannot_be_read(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").symlink_to(tmp_path / "gone")
    data = open_data({"name": "image-folder", "root": tmp_path})
    with pytest.raises(FileNotFoundError, match=r"cat/1\.png: expected a picture"):
        data[0]


def test_files_that_are_not_read_are_counted_by_kind(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.jpg", "stray.png", "README.md")
    write(tmp_path, *(f"cat/{k}.HEIC" for k in range(3)), "dog/a.txt", "dog/no ending")
    said = r"5 of 7 files are not read: 3 \.heic, 1 .*; 1 \.png beside the subfolders belong to no class"
    with pytest.warns(UserWarning, match=said) as caught:
        found(tmp_path)
    assert "1 without an ending" in str(caught[0].message) and ".txt" in str(caught[0].message)


def test_a_class_without_a_file_that_is_read_is_an_error_that_names_it(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.heic", "dog/2.heic", "dog/deep/3.txt", "owl/.hidden.png")
    with pytest.raises(
        ValueError, match=r"'dog' holds 2 \.heic, 1 \.txt; 'owl' holds no file; a folder that is no"
    ):
        found(tmp_path)
    (tmp_path / "cat" / "1.png").rename(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"found none: 'cat' holds no file; 'dog' .* itself holds 1 \.png"):
        found(tmp_path)


def test_two_files_of_one_name_have_two_ids(tmp_path):
    write(tmp_path, "cat/1.png", "cat/1.jpg", "cat/2.png", "dog/1.png")
    assert found(tmp_path).ids == ["cat/1.jpg", "cat/1.png", "cat/2", "dog/1"]
    write(tmp_path, "cat/1.png.png")
    ids = found(tmp_path).ids
    assert len(set(ids)) == 5 and "cat/1.png" in ids and "cat/1.png.png" in ids


def test_blanks_around_a_classs_name_do_not_count(tmp_path):
    write(tmp_path, "cat/1.png", "cat /2.png", "dog/1.png")
    own = silent(tmp_path)
    assert own.classes == ["cat", "dog"] and own.labels.tolist() == [0, 0, 1]


def test_classes_that_look_alike_in_one_folder_are_refused(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write(tmp_path, *(f"{name}/1.png" for name in names))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system composes names itself")
    with pytest.raises(ValueError, match=r"two classes look alike: .*U\+0065 U\+0301.*U\+00E9"):
        found(tmp_path)


def test_recordings_of_digits_beside_a_systems_files(tmp_path):
    from speech_folders import write_folder

    from ucmkd_fast.data.fsdd import recording_files

    folder = write_folder(tmp_path / "digits")
    write(folder, "._7_ann_0.wav", "notes.txt", ".DS_Store")
    with pytest.warns(UserWarning, match=r"1 of 21 files are not read: 1 \.txt"):
        files = recording_files(folder)
    assert len(files) == 20 and not any(path.name.startswith(".") for path in files)


def test_pictures_of_a_clip_beside_a_systems_files(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    from ucmkd_fast.data.clips import picture_files

    write(tmp_path, "1.jpg", "2.tif", "._1.jpg", "list.txt")
    assert [path.name for path in picture_files(tmp_path)] == ["1.jpg", "2.tif"]


def test_folders_pickle(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    import numpy as np
    from clip_folders import picture, sound

    picture(tmp_path / "images" / "cat" / "1.png", np.random.default_rng(0))
    sound(tmp_path / "sounds" / "cat" / "1.wav", np.random.default_rng(0))
    for name, root in (("image-folder", "images"), ("audio-folder", "sounds")):
        data = open_data({"name": name, "root": tmp_path / root})
        assert torch.equal(pickle.loads(pickle.dumps(data))[0][0], data[0][0])  # noqa: S301  (our own)


@pytest.mark.parametrize("up", ["..", "../..", "../../.."])
def test_a_link_to_what_holds_the_classes_brings_no_files_of_another_class(tmp_path, up):
    root = write(tmp_path / "deep" / "root", "cat/1.png", "dog/1.png")
    (root / "dog" / "up").symlink_to(up)
    assert silent(root).ids == ["cat/1", "dog/1"]


def test_two_names_of_one_folder_are_refused(tmp_path):
    (write(tmp_path, "cat/1.png") / "dog").symlink_to(tmp_path / "cat")
    with pytest.raises(ValueError, match="'cat' and 'dog' are one folder"):
        found(tmp_path)


@pytest.mark.parametrize("place", ["", "cat"])
@pytest.mark.parametrize("to", ["gone", "dog"], ids=["nothing", "itself"])
def test_a_folder_that_is_a_link_to_nothing_does_not_vanish_in_silence(tmp_path, place, to):
    (write(tmp_path, "cat/1.png", "bird/1.png") / place / "dog").symlink_to(to)
    with pytest.warns(
        UserWarning, match="1 link to nothing beside" if not place else "1 of 3 files are not read"
    ):
        assert found(tmp_path).ids == ["bird/1", "cat/1"]


@pytest.mark.parametrize("parts", [["train", "val", "test"], ["Training", "Validation"], ["train"]])
def test_parts_in_the_place_of_classes_are_refused(tmp_path, parts):
    write(tmp_path, *(f"{part}/{kind}/1.png" for part in parts for kind in ("cat", "dog")))
    with pytest.raises(ValueError, match=rf"names of parts.*train: {{..., root: .*{parts[0]}}}"):
        found(tmp_path)
    assert found(tmp_path / parts[0]).classes == ["cat", "dog"]
    write(tmp_path, "car/1.png")  # vehicles, then
    assert len(found(tmp_path).classes) == len(parts) + 1


@pytest.mark.parametrize("name", ["Thumbs.db", "thumbs.db", "Desktop.ini", "ehthumbs.db", "Icon\r"])
def test_names_of_the_systems_files_in_any_case(tmp_path, name):
    write(tmp_path, "cat/1.png", f"cat/{name}", "System Volume Information/a.dat", "__pycache__/a.pyc")
    assert silent(tmp_path).ids == ["cat/1"]
