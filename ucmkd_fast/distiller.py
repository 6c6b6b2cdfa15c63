"""The training loop: a student, a teacher, a method, and data whose samples have no partners."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn

from .bilevel.temporary_point import joint_norm
from .config import TrainConfig
from .data import (
    Batch,
    FeatureBank,
    LabelledData,
    UnpairedLoader,
    WarmStart,
    balanced_rows,
)
from .methods import FrozenTeacher, Method, Step, TrainedTeacher, build_method
from .models import check_model
from .models.precision import inputs_for, loss_dtype, seen_in
from .models.weights import load_state, state_of
from .training.checkpoint import snapshot, write_checkpoint, write_weights
from .training.data_sets import DataSets, as_data
from .training.diagnosis import Diagnosis, can_diagnose, diagnose
from .training.distributed import (
    average,
    average_buffers,
    broadcast_model,
    gather_rows,
    make_accelerator,
    on_first_rank,
    world,
)
from .training.lock import only_writer
from .training.method_settings import method_settings, settled_draw
from .training.metrics import Meter, evaluate
from .training.progress import ProgressBar
from .training.run_folder import (
    RunFolder,
    git_state,
    identity_of,
    latest_checkpoint,
    read_resume_point,
    versions,
)
from .training.schedule import build_optimizer, learning_rate, set_learning_rate
from .training.standing import Standing, capture, restore
from .training.tracking import Tracking, check_trackers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What `Distiller.fit` did. Epochs are counted from 1."""

    history: list[dict[str, float]]  # an entry an epoch: lr, means of the method's figures, validation
    best_epoch: int | None  # None where there was no validation
    best_accuracy: float | None  # on validation, 0 to 1
    seconds: float  # in epochs, over all sessions of a resumed run
    output_dir: Path | None
    student_path: Path | None  # the weights that the student holds now
    checkpoint_path: Path | None


class Distiller:
    """Trains a student, with a teacher of another modality, by one of the methods.

    Args:
        student: has ``encode(x) -> (n, D)`` and a module ``head``; trained in place.
        teacher: the same contract; frozen, in eval mode, but for methods that train it in place
            (``"c2kd"``). None for methods without a teacher.
        method: a name of `available_methods`.
        preset: of the methods that have presets (``"ucmkd"``): ``"paper"`` or ``"published-code"``.
        method_options: further arguments of the method's constructor.
        config: training settings; None: the defaults of `TrainConfig`.
        output_dir: where checkpoints, the best student, settings and curves go. None: nothing is written.
        settings: plain values to save in ``config.yaml`` in the place of the method's and the training's own,
            for a caller whose settings say more.
        **train_options: fields of `TrainConfig` that are to differ from ``config``.

    Raises:
        TypeError: a model without ``encode`` or ``head``; a setting of a wrong type.
        ValueError: an unknown method, preset, option or setting, or one out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: str = "ucmkd",
        preset: str = "paper",
        *,
        method_options: dict[str, Any] | None = None,
        config: TrainConfig | None = None,
        output_dir: str | Path | None = None,
        settings: dict[str, Any] | None = None,
        **train_options: Any,
    ):
        check_model(student, "student")
        if teacher is not None:
            check_model(teacher, "teacher")
        self.method_settings = method_settings(method, preset, method_options or {})
        self.method: Method = build_method(method, **self.method_settings["options"])
        if self.method.uses_teacher and teacher is None:
            raise ValueError(f"method {method!r} needs a teacher, got None")

        if config is not None and not isinstance(config, TrainConfig):
            raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
        config = (config or TrainConfig()).updated(**train_options)
        self.run = None if output_dir is None else RunFolder(output_dir)
        self._saved_settings = settings
        logs = ProjectConfiguration(logging_dir=str(self.run.path / "logs")) if self.run else None
        check_trackers(config.trackers, has_folder=self.run is not None)
        if config.warm_start is not None and self.method.warm_transport is None:
            raise ValueError(
                f"warm_start keeps the potentials of FA between whole batches, which method {method!r} with these "
                "options does not compute: leave it out ('feature', 'joint' and 'ucmkd' of order 1 do)"
            )
        if config.keep_weights_every is not None and self.run is None:
            raise ValueError("keep_weights_every writes files: it needs an output_dir")
        self.accelerator = make_accelerator(
            config.mixed_precision, log_with=list(config.trackers) or None, project_config=logs
        )
        # What was left open is settled here, so that the saved settings are the ones that ran.
        self.config = config.updated(
            draw=settled_draw(self.method, config.draw), mixed_precision=self.accelerator.mixed_precision
        )
        # Not accelerator.prepare_model: under bf16 it replaces student.forward for good.
        self.student = student.to(self.accelerator.device)
        dtype = loss_dtype(student)
        as_taught = TrainedTeacher if self.method.trains_teacher else FrozenTeacher
        self.teacher = None if teacher is None else as_taught(teacher.to(self.accelerator.device), dtype)
        _check_trainable(self.student, "student")
        if self.teacher is not None and self.method.trains_teacher:
            _check_trainable(self.teacher.model, "teacher")
        # A teacher that learns is known by the head that it began with.
        self._first_head: dict[str, Any] = {}
        if isinstance(self.teacher, TrainedTeacher):
            self._first_head = snapshot(self.teacher.model.head.state_dict())
        autocast = nullcontext if self.config.mixed_precision == "no" else self.accelerator.autocast
        self._step = Step(seen_in(self.student, dtype), self.teacher, autocast=autocast)
        if world().size > 1:
            self._step.reduce_gradients, self._step.gather_rows = average, gather_rows
            self._step.group = dist.group.WORLD

    def fit(
        self,
        student_train: Any,
        teacher_train: Any = None,
        student_val: Any = None,
        *,
        student_unlabelled: Any = None,
        resume: bool | str | Path = False,
        overwrite: bool = False,
    ) -> FitResult:
        """Train for ``config.epochs`` epochs.

        Args:
            student_train: labelled samples of the student's modality: a `LabelledData`, or a pair of
                tensors (x, y).
            teacher_train: samples of the teacher's modality, or a `FeatureBank` of their features.
            student_val: chooses the best epoch, where given.
            student_unlabelled: samples of the student's modality, a `LabelledData` whose labels are not read, or
                a tensor x; for methods that use them (``"ucmkd-plus"``, ``"self-training"``).
            resume: True goes on from the newest checkpoint in ``output_dir``, or starts where there is
                none; a path names another run's folder, or one checkpoint.
            overwrite: replace the run that ``output_dir`` holds.

        Raises:
            ValueError: data, models and method do not fit each other; ``output_dir`` holds another run.
            FileNotFoundError: nothing readable at ``resume``.
            FolderInUse: an OSError: another process, or thread, is training into ``output_dir``.
            FloatingPointError: the training diverged; checkpoints are of the epochs before.
        """
        data = DataSets.of(student_train, teacher_train, student_val, student_unlabelled)
        self._check(data)
        with ExitStack() as held:
            if self.run is not None:
                folder = self.run.path
                self._write(lambda: held.enter_context(only_writer(folder)))
            return self._fit(data, resume, overwrite)

    def _fit(self, data: DataSets, resume: bool | str | Path, overwrite: bool) -> FitResult:
        """As `fit`, with data that were checked and a folder that nobody else writes to."""
        config = self.config
        self._step.warm_start = self._warm_start(data)
        loader = self._loader(data)
        saved = self._open_run(self._identity(data), resume, overwrite)
        optimizers = self._prepare(self._ready(data.example()))
        self._hand_over_bank(data.teacher_train)
        standing = Standing() if saved is None else restore(saved, self._models(), optimizers)
        self._record(standing, None)

        name, main = self.method_settings["name"], self.accelerator.is_main_process
        total = config.epochs * len(loader)
        self._step.watched = bool(config.trackers)
        diagnosis = None
        if self._alignable and config.diagnose and main:
            diagnosis = Diagnosis(self.method, self._alignable, config.batch_size, config.epochs)
        with (
            Tracking(
                self.accelerator,
                active=self._step.watched,
                done=standing.step,
                every=config.log_every,
                samples=config.batch_size,
            ) as tracking,
            ProgressBar(name, total, standing.step, visible=config.progress and main) as bar,
        ):
            while standing.epoch < config.epochs:
                started = time.perf_counter()
                loader.set_epoch(standing.epoch)
                means = self._train_epoch(loader, optimizers, standing.epoch, bar, tracking)
                if world().size > 1:
                    for model in self._models().values():
                        average_buffers(model)
                validation = {} if data.student_val is None else self.evaluate(data.student_val)

                standing.epoch += 1
                standing.step += len(loader)
                seconds = time.perf_counter() - started
                standing.seconds += seconds
                lr = optimizers[0].param_groups[0]["lr"]
                figures = {"epoch": standing.epoch, "lr": lr, **means, "seconds": seconds}
                figures |= self._diagnosis()
                if validation:
                    figures |= {"val_accuracy": validation["accuracy"], "val_loss": validation["loss"]}
                standing.history.append(figures)
                if diagnosis is not None:
                    diagnosis.look(standing.history)
                self._keep_best(standing, validation)
                self._record(standing, optimizers)
                tracking.epoch(figures)
                bar.note(_line(figures))
                _log.info("%s, epoch %d of %d: %s", name, standing.epoch, config.epochs, _line(figures))
        return self._finish(standing)

    def evaluate(self, data: Any) -> dict[str, Any]:
        """Accuracy, loss, per-class accuracy and confusion of the student; see `metrics.evaluate`."""
        return evaluate(
            self.student,
            as_data(data),
            device=self.accelerator.device,
            batch_size=self.config.batch_size,
            autocast=self._step.autocast,
        )

    def _models(self) -> dict[str, nn.Module]:
        """Everything that changes from step to step, by its name in a checkpoint."""
        models: dict[str, nn.Module] = {"student": self.student, "method": self.method}
        if isinstance(self.teacher, TrainedTeacher):
            models["teacher"] = self.teacher.model
        if self._step.warm_start is not None:
            models["potentials"] = self._step.warm_start
        return models

    def _warm_start(self, data: DataSets) -> WarmStart | None:
        """Potentials of all samples, 0 at first; None where the run does not keep them."""
        if self.config.warm_start is None or data.teacher_train is None:
            return None
        options = self.method.warm_transport._asdict()
        sizes = len(data.teacher_train), len(data.student_train)
        kept = WarmStart(*sizes, tol=self.config.warm_start, grad="implicit", **options)
        return kept.to(self.accelerator.device)

    def _prepare(self, example: Batch) -> list[torch.optim.Optimizer]:
        """Set seeds, modes and equal weights on every rank; the optimisers, the student's first."""
        set_seed(self.config.seed, device_specific=True)
        self.method.setup(self._step.student, self.teacher, example)
        self.method.to(self.accelerator.device)
        for model in self._models().values():
            model.train()
            if world().size > 1:
                broadcast_model(model)
        self._trained = [p for p in self.student.parameters() if p.requires_grad]
        return [build_optimizer(self.config, self._trained), *self.method.own_optimizers()]

    def _hand_over_bank(self, teacher_train: LabelledData | None) -> None:
        """Give the method the teacher's features that it keeps at hand, the same on every rank."""
        if not self.method.bank_size or teacher_train is None or not isinstance(self.teacher, FrozenTeacher):
            return
        rows = balanced_rows(teacher_train.labels, self.method.bank_size, self.config.seed)
        part = teacher_train.subset(rows)
        bank = part if isinstance(part, FeatureBank) else FeatureBank.from_model(self.teacher.model, part)
        device = self.accelerator.device
        self.method.receive_bank(bank.x.to(device, self.teacher.dtype), bank.labels.to(device))

    def _train_epoch(
        self,
        loader: UnpairedLoader,
        optimizers: list[torch.optim.Optimizer],
        epoch: int,
        bar: ProgressBar,
        tracking: Tracking,
    ) -> dict[str, float]:
        """One pass, ``epoch`` counted from 0; the means of the figures of its steps."""
        meter, clip = Meter(), self.config.clip_norm
        scheduled = learning_rate(self.config, epoch)
        tracking.begin()
        for i, batch in enumerate(loader):
            self._step.progress = (epoch * len(loader) + i) / (self.config.epochs * len(loader))
            self._step.learning_rate = self.method.learning_rate(scheduled, epoch, i)
            set_learning_rate(optimizers[0], self._step.learning_rate)
            self._last_batch = self._ready(batch)
            self._step.notes.clear()
            parts = {**self.method.backward(self._step, self._last_batch), **self._step.notes}
            if clip is not None:
                parts["grad_norm"] = nn.utils.clip_grad_norm_(self._trained, clip)
            elif self._step.watched:
                parts["grad_norm"] = joint_norm([p.grad for p in self._trained if p.grad is not None])
            for optimizer in optimizers:
                optimizer.step()
            tracking.step(parts)
            meter.add({name: value for name, value in parts.items() if not value.dim()})
            bar.advance()
        means = meter.means()
        if not all(math.isfinite(means[name]) for name in ("loss", "grad_norm") if name in means):
            raise FloatingPointError(
                f"the training diverged at learning rate {self._step.learning_rate:g} ({means}): lower "
                "lr, or the method's inner learning rate; what is saved is of the epochs before"
            )
        return means

    def _ready(self, batch: Batch) -> Batch:
        """The batch on the device, the student's samples in its dtype; the teacher sees to its own."""
        batch = batch.to(self.accelerator.device)
        batch.x = inputs_for(self.student, batch.x)
        if batch.unlabelled_x is not None:
            batch.unlabelled_x = inputs_for(self.student, batch.unlabelled_x)
        return batch

    def _diagnosis(self) -> dict[str, float]:
        """How well the alignment does on the epoch's last batch; empty where that cannot be said."""
        if not (self.config.diagnose and self._alignable):
            return {}
        figures = diagnose(self._step, self._last_batch, self.method.marginal_fa)
        return dict(zip(figures, torch.stack([f.float() for f in figures.values()]).tolist(), strict=True))

    def _loader(self, data: DataSets) -> UnpairedLoader:
        rank, size = world()
        config = self.config
        return UnpairedLoader(
            data.student_train,
            data.teacher_train if self.method.uses_teacher else None,
            batch_size=config.batch_size,
            teacher_batch_size=config.teacher_batch_size,
            draw=config.draw or "independent",
            seed=config.seed,
            rank=rank,
            world_size=size,
            steps_per_epoch=config.steps_per_epoch,
            unlabelled=data.unlabelled,
            unlabelled_batch_size=config.unlabelled_batch_size,
        )

    def _check(self, data: DataSets) -> None:
        """Raise ValueError unless models, method and data fit each other."""
        name, device = self.method_settings["name"], self.accelerator.device
        width, teacher_width, classes = data.check(
            self.student, self.teacher, self.method, name, self.config, device
        )
        alignable = teacher_width is not None and can_diagnose(self._step, width, teacher_width)
        self._alignable = classes if alignable else 0

    def _identity(self, data: DataSets) -> dict[str, Any]:
        """What tells this run from others, see `run_folder.identity_of`."""
        head = {} if self.teacher is None else self._first_head or self.teacher.model.head.state_dict()
        return identity_of(self._settings(), data.described(), head)

    def _settings(self) -> dict[str, Any]:
        return {"method": self.method_settings, "train": self.config.to_dict()}

    def _open_run(
        self, identity: dict[str, Any], resume: bool | str | Path, overwrite: bool
    ) -> dict[str, Any] | None:
        """Check and make the output folder; the checkpoint to go on from, or None."""
        if resume is True and self.run is None:
            raise ValueError("resume=True needs an output_dir to go on from; a path may be given as well")
        if resume and overwrite:
            raise ValueError("resume and overwrite exclude each other: go on with the run, or replace it")
        source = None if isinstance(resume, bool) else Path(resume)
        if resume is True and self.run is not None and self.run.held():
            source = self.run.path
        if self.run is not None:
            self.run.check(source=source, overwrite=overwrite)
        saved = None if source is None else read_resume_point(source, identity)
        self.accelerator.wait_for_everyone()  # every rank has read before the first writes
        run, settings = self.run, self._saved_settings or self._settings()
        if run is not None:
            record = {
                "identity": identity,
                "versions": versions(),
                "git": git_state(),
                "processes": world().size,
                "device": str(self.accelerator.device),
                "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            self._write(lambda: run.begin(settings, record, overwrite=overwrite))
        return saved

    def _keep_best(self, standing: Standing, validation: dict[str, Any]) -> None:
        """Remember the student when its validation accuracy is above all before."""
        if not validation:
            return
        if standing.best_accuracy is not None and validation["accuracy"] <= standing.best_accuracy:
            return
        standing.best_epoch, standing.best_accuracy = standing.epoch, validation["accuracy"]
        standing.best_weights = snapshot(state_of(self.student))

    def _write(self, action: Callable[[], object]) -> None:
        """Write to the run's folder, on the main process; where that fails, every process stops."""
        on_first_rank(action, self.accelerator.device)

    def _record(self, standing: Standing, optimizers: list[torch.optim.Optimizer] | None) -> None:
        """Write the best student where it is new, a student that is to stay, and a checkpoint where one is due.

        Before the first epoch, without optimisers, there is no checkpoint, and the best student is written whatever
        its epoch: the file may be of one that the checkpoint has not seen.
        """
        if self.run is None:
            return
        run, epoch, config = self.run, standing.epoch, self.config
        state = None
        if optimizers is not None and (epoch % config.checkpoint_every == 0 or epoch == config.epochs):
            state = capture(standing, self._models(), optimizers, self.accelerator.device)  # of all ranks

        def write() -> None:
            if standing.best_weights is not None and (optimizers is None or standing.best_epoch == epoch):
                about = {"epoch": str(standing.best_epoch), "val_accuracy": repr(standing.best_accuracy)}
                write_weights(run.best, standing.best_weights, {"format": "pt", **about})
            if config.keep_weights_every is not None and epoch % config.keep_weights_every == 0:
                path = run.weights_at(epoch)  # the first weights are epoch 0
                path.parent.mkdir(exist_ok=True)
                write_weights(path, snapshot(state_of(self.student)), {"format": "pt", "epoch": str(epoch)})
            if state is not None:
                write_checkpoint(run.checkpoints, standing.step, state)

        self._write(write)

    def _finish(self, standing: Standing) -> FitResult:
        """Give the student the weights that were asked for, in eval mode, and say where everything is."""
        best = standing.best_weights if self.config.restore_best else None
        path = None
        if self.run is not None:
            last = self.run.last
            path = self.run.best if best else last
            about = {"format": "pt", "epoch": str(standing.epoch)}
            self._write(lambda: write_weights(last, snapshot(state_of(self.student)), about))
        if best:
            load_state(self.student, best)
        for model in self._models().values():
            model.eval().zero_grad(set_to_none=True)
        return FitResult(
            history=standing.history,
            best_epoch=standing.best_epoch,
            best_accuracy=standing.best_accuracy,
            seconds=standing.seconds,
            output_dir=self.run.path if self.run else None,
            student_path=path,
            checkpoint_path=latest_checkpoint(self.run) if self.run else None,
        )


def _check_trainable(model: nn.Module, role: str) -> None:
    """Raise ValueError for weights in float16 that are to be trained."""
    if any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad):
        raise ValueError(
            f"the {role} is trained, so its weights must not be in float16, whose gradients vanish or overflow "
            f"without scaling: call {role}.float(), with mixed_precision='bf16' for speed"
        )


def _line(figures: dict[str, Any]) -> str:
    """The figures that a person watches."""
    shown = ("loss", "val_loss", "val_accuracy")
    return ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in shown if name in figures)
