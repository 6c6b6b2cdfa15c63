"""Runs in processes of its own, started by the tests of the loop: killed runs, several ranks, bf16."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from distiller_problem import (
    STUDENT_TRAIN,
    STUDENT_VAL,
    TEACHER_TRAIN,
    student,
    teacher,
    unlabelled_for,
    weights,
)
from map_models import image_teacher, samples, series_student
from torch import nn

from ucmkd_fast import alignment
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training.checkpoint import list_checkpoints, write_checkpoint

KILLED: dict[str, Any] = {
    "epochs": 30,
    "steps_per_epoch": 2,
    "batch_size": 16,
    "lr": 0.05,
    "optimizer": "adamw",
}


def run_to_the_end(folder: Path | None) -> torch.Tensor:
    trained = student(dropout=0.2, norm=True)
    distiller = Distiller(trained, teacher(), "ucmkd", output_dir=folder, **KILLED)
    distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, resume=folder is not None)
    return weights(trained)


def killed(folder: Path) -> None:
    """Fork a run, kill it with signal 9 after a random while, fork it again, until it reaches its end."""
    run_to_the_end(None)  # warm
    started = time.perf_counter()
    expected = run_to_the_end(folder / "in_peace")
    whole = time.perf_counter() - started
    generator, kills, moments = random.Random(int(os.environ.get("UCMKD_TEST_SEED", 7))), 0, []
    run, outcome = folder / "run", folder / "weights.pt"
    while not outcome.exists():
        child = os.fork()
        if child == 0:
            torch.save(run_to_the_end(run), outcome.with_suffix(".part"))
            os.rename(outcome.with_suffix(".part"), outcome)
            os._exit(0)
        if kills < 8:
            time.sleep(whole * generator.uniform(0.05, 0.25))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
        moments.append(max((int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")), default=0))
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    got = torch.load(outcome, weights_only=True)
    print(json.dumps({"kills": kills, "equal": torch.equal(got, expected), "moments": moments}))


#: Methods whose two ranks must equal one process on both ranks' samples, and their options.
RANK_CASES: dict[str, dict[str, Any]] = {
    "ce": {"method": "ce", "optimizer": "adamw"},
    "kd": {"method": "kd"},
    "feature": {"method": "feature"},
    "joint": {"method": "joint"},
    "joint, warm": {"method": "joint", "warm_start": 1e-4},
    "ucmkd": {"method": "ucmkd", "method_options": {"n1": 2}},
    "ucmkd without FA": {"method": "ucmkd", "method_options": {"n1": 0}},
    "published code": {"method": "ucmkd", "preset": "published-code"},
    "norm": {"method": "norm"},
    "fitnet": {"method": "fitnet"},
    "rkd": {"method": "rkd"},
    "dkd": {"method": "dkd"},
    "rld": {"method": "rld"},
    "label-aware-fa": {"method": "label-aware-fa"},
    "prototype-kd": {"method": "prototype-kd", "method_options": {"feature_weight": 0.5, "bank_size": 24}},
    "self-training": {"method": "self-training"},
    "ucmkd-plus": {"method": "ucmkd-plus", "method_options": {"bank_size": 24}},
}
#: The same with a transport problem that the ranks share instead of gathering its rows.
SHARED_CASES: dict[str, dict[str, Any]] = {
    "joint, shared": {"method": "joint", "shared_from": 1},
    "ucmkd, shared": {"method": "ucmkd", "shared_from": 1, "method_options": {"n1": 2}},
    "joint, shared, warm": {"method": "joint", "shared_from": 1, "warm_start": 1e-4},
}
RANK_SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "steps_per_epoch": 3,
    "batch_size": 16,
    "lr": 0.05,
    "clip_norm": 0.5,
}
UNEVEN_VAL = tuple(tensor[:19] for tensor in STUDENT_VAL)


def run_case(case: dict[str, Any]) -> tuple[torch.Tensor, list[dict[str, float]]]:
    case = dict(case)
    with mock.patch.object(alignment, "SHARED_FROM", case.pop("shared_from", alignment.SHARED_FROM)):
        trained = student()
        distiller = Distiller(trained, teacher(), **RANK_SETTINGS, **case)
        result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, UNEVEN_VAL, **unlabelled_for(distiller))
    return weights(trained), result.history


def ranks(folder: Path) -> None:
    """One of several ranks (torchrun's variables): each case's weights and history, saved per rank."""
    rank = int(os.environ["RANK"])
    found = {name: run_case(case) for name, case in (RANK_CASES | SHARED_CASES).items()}

    # Normalisation and dropout: equal to nothing else, but the ranks must stay in step, also after a resume.
    def in_step(run: Path | None, **how: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
        trained = student(dropout=0.3, norm=True)
        if rank:
            with torch.no_grad():  # other first weights than rank 0's, which must win
                for parameter in trained.head.parameters():
                    parameter.add_(1.0)
        distiller = Distiller(
            trained, teacher(), "ucmkd", output_dir=run, **{**RANK_SETTINGS, **how.pop("settings", {})}
        )
        result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, **how)
        return weights(trained), result.history

    found["in step"] = in_step(None)
    run = folder / "run"
    in_step(run)
    if rank == 0:
        shutil.rmtree(list_checkpoints(run / "checkpoints")[0])
    torch.distributed.barrier()
    found["resumed"] = in_step(run, resume=True)
    found["from one process"] = from_one_process(folder / "alone")
    found["c2kd"] = teacher_in_step(rank)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def from_one_process(run: Path) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Goes on from the checkpoint of a run of one process."""
    trained = student()
    distiller = Distiller(trained, teacher(), "joint", warm_start=1e-4, **RANK_SETTINGS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, resume=run)
    assert any("of 1 processes and goes on with 2" in str(one.message) for one in said)
    return weights(trained), result.history


def teacher_in_step(rank: int) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """A run that trains the teacher and owns normalised modules: everything that learned, and the history."""
    torch.manual_seed(rank)  # other first weights than rank 0's, which must win
    trained, taught = series_student(), image_teacher()
    distiller = Distiller(trained, taught, "c2kd", **RANK_SETTINGS)
    result = distiller.fit(samples(48, 1, 12, seed=3), samples(40, 1, 6, 6, seed=4))
    return torch.cat([weights(model) for model in (trained, taught, distiller.method)]), result.history


def full(folder: Path) -> None:
    """Ranks of a run whose second checkpoint finds no room, on rank 0 alone: what each says."""
    rank, written = int(os.environ["RANK"]), []

    def write(run: Path, step: int, *more: Any) -> Path:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(step)
        return write_checkpoint(run, step, *more)

    distiller = Distiller(student(), teacher(), "feature", output_dir=folder / "run", **RANK_SETTINGS)
    with mock.patch("ucmkd_fast.distiller.write_checkpoint", write):
        try:
            distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL)
        except OSError as error:
            print(f"rank {rank}: {error}")
    torch.distributed.destroy_process_group()


def _note_dtype(dtypes: list[torch.dtype], module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    dtypes.append(output.dtype)


def bf16(folder: Path) -> None:
    """Every method under bf16: the features are bf16, the weights float32, the loss falls."""
    for name, case in RANK_CASES.items():
        trained = student()
        dtypes: list[torch.dtype] = []
        trained.encoder.register_forward_hook(partial(_note_dtype, dtypes))
        distiller = Distiller(
            trained, teacher(), mixed_precision="bf16", epochs=10, steps_per_epoch=2, lr=0.05, **case
        )
        result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, **unlabelled_for(distiller))
        # The weight of unlabelled samples rises, and here pulls elsewhere: there only the beginning must learn.
        ramped = distiller.method.uses_unlabelled
        losses = [epoch["ce" if ramped else "loss"] for epoch in result.history]
        assert (min(losses) if ramped else losses[-1]) < 0.95 * losses[0], (name, losses)
        assert set(dtypes[-20:]) == {torch.bfloat16}, (name, dtypes)  # those before only looked at sizes
        assert weights(trained).dtype == torch.float32 and distiller.config.mixed_precision == "bf16"
        assert "forward" not in vars(trained)  # nothing of the loop is left in the model
    print("all", len(RANK_CASES))


def run_workers(job: str, folder: Path, processes: int = 1) -> list[str]:
    """Run a job of this file in processes of their own, as torchrun would start them; their last lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    command = [sys.executable, __file__, job, str(folder)]
    running = []
    for rank in range(processes):
        one = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        running.append(
            subprocess.Popen(command, env=one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors
    return [(out.splitlines() or [""])[-1] for out, _ in outputs]


if __name__ == "__main__":
    {"killed": killed, "ranks": ranks, "full": full, "bf16": bf16}[sys.argv[1]](Path(sys.argv[2]))
