"""Checkpoints: whole or absent, checked when read, the one before used when the newest is damaged."""

import errno
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ucmkd_fast.training import checkpoint, randomness
from ucmkd_fast.training.checkpoint import (
    list_checkpoints,
    read_checkpoint,
    read_latest,
    remove_leftovers,
    write_checkpoint,
    write_text,
    write_weights,
)


def state(value: float) -> dict:
    shared = torch.full((3, 2), value)
    return {
        "epoch": 3,
        "history": [{"loss": 0.1 + value}, {"loss": float("inf")}],
        "none": None,
        "model": {
            "a.weight": shared,
            "tied": shared,
            "view": torch.arange(6).view(2, 3).T,
            "scalar": torch.tensor(True),
        },
        "optimizers": [{"0": {"momentum": torch.ones(2, dtype=torch.bfloat16)}}],
    }


def assert_equal(left, right):
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    else:
        assert left == right


def test_a_state_comes_back_bit_for_bit(tmp_path):
    path = write_checkpoint(tmp_path, 12, state(1 / 3))
    assert_equal(read_checkpoint(path), state(1 / 3))
    assert sorted(file.name for file in path.iterdir()) == ["SHA256SUMS", "state.json", "tensors.safetensors"]
    json.loads((path / "state.json").read_text())
    assert read_latest(tmp_path / "nowhere") is None


def test_the_two_newest_are_kept_and_later_ones_of_an_abandoned_future_go(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step, state(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000015", "step-00000010"]
    write_checkpoint(tmp_path, 12, state(12))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000012", "step-00000010"]
    write_checkpoint(tmp_path, 12, state(13))  # once more, over the one that is there
    assert_equal(read_latest(tmp_path), state(13))
    assert len(os.listdir(tmp_path)) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, name, damage):
    write_checkpoint(tmp_path, 5, state(5))
    newest = write_checkpoint(tmp_path, 10, state(10))
    damage(newest / name)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_checkpoint(newest)
    assert str(newest) in str(caught.value)
    with pytest.warns(UserWarning, match="going on from the one before it.*step-00000005"):
        assert_equal(read_latest(tmp_path), state(5))
    damage(tmp_path / "step-00000005" / name)
    with pytest.raises(ValueError, match="no sound checkpoint is left"):
        read_latest(tmp_path)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    path = write_checkpoint(tmp_path, 5, state(5))
    found = 0
    for file in path.iterdir():
        content = file.read_bytes()
        for position in {*range(0, len(content), 5), len(content) - 1}:
            file.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
            try:
                assert_equal(read_checkpoint(path), state(5))
            except ValueError as error:
                assert str(path) in str(error)
                found += 1
        file.write_bytes(content)
    assert found > 150
    assert_equal(read_checkpoint(path), state(5))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="readable checkpoint at .*step-1"):
        read_checkpoint(tmp_path / "step-1")


def test_what_no_checkpoint_can_hold_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="model/x is a set"):
        write_checkpoint(tmp_path, 1, {"model": {"x": {1}}})
    assert not os.listdir(tmp_path)


class FullDisk:
    """Lets calls through but one, which finds the disk full."""

    def __init__(self, failing: int):
        self.failing, self.calls = failing, 0

    def watched(self, real):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("write", ["checkpoint", "again", "weights", "text"])
def test_a_full_disk_at_any_moment_leaves_what_was_there(tmp_path, monkeypatch, write):
    """Every call that touches the disk fails once, in turn; the earlier content stays readable."""
    targets = [
        (os, "rename"),
        (os, "replace"),
        (os, "fsync"),
        (checkpoint, "save_file"),
        (Path, "write_text"),
    ]
    weights, text = tmp_path / "best.safetensors", tmp_path / "run.json"
    write_checkpoint(tmp_path, 5, state(5))
    write_checkpoint(tmp_path, 10, state(10))
    write_weights(weights, {"w": torch.zeros(2)}, {})
    write_text(text, "old")
    whole_weights = [weights.read_bytes(), safetensors.torch.save({"w": torch.ones(2)}, {})]
    actions = {
        "checkpoint": lambda: write_checkpoint(tmp_path, 15, state(15)),
        "again": lambda: write_checkpoint(tmp_path, 10, state(11)),
        "weights": lambda: write_weights(weights, {"w": torch.ones(2)}, {}),
        "text": lambda: write_text(text, "new"),
    }

    failed = 0
    for failing in itertools.count(1):
        disk = FullDisk(failing)
        with monkeypatch.context() as patch:
            for owner, name in targets:
                patch.setattr(owner, name, disk.watched(getattr(owner, name)))
            try:
                actions[write]()
            except OSError as error:
                assert "No space left" in str(error)
                failed += 1
            else:
                if disk.calls < failing:
                    break  # fewer calls than that: each has failed once
        remove_leftovers(tmp_path)
        found = read_latest(tmp_path)
        assert found is not None and found["model"]["a.weight"][0, 0] in (5, 10, 11, 15)
        assert weights.read_bytes() in whole_weights
        assert text.read_text() in ("old", "new")
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert failed >= 2


def test_random_generators_go_on_where_they_were():
    torch.manual_seed(3), random.seed(4), np.random.seed(5)
    random.gauss(0, 1), np.random.randn(), torch.randn(3)  # each keeps a second normal number in stock
    saved = randomness.capture()

    def draw():
        return torch.randn(3).tolist(), random.gauss(0, 1), random.random(), np.random.randn(3).tolist()

    first = draw()
    draw()
    randomness.restore({key: value.clone() for key, value in saved.items()})
    assert draw() == first
