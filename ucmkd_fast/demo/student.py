"""One student: trained by one method at one seed, then measured on voices that it never heard."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save as bytes_of

from ..data import FeatureBank
from ..distiller import Distiller
from ..models import Classifier, speech_cnn
from ..report.theory import BoundParts
from ..run.measure import alignment
from .settings import WIDTH, Contender, DemoSettings, student_config
from .task import Task


@dataclass(frozen=True)
class Outcome:
    """What one run gave. Accuracies are from 0 to 1; "test" is on voices never heard in training."""

    key: str  # of the contender
    seed: int
    accuracy: float  # test
    test_samples: int
    val_accuracy: float
    fa: float  # cosine cost, test features against the teacher's held-out ones
    la: float  # nats, test
    teacher_reads: float  # accuracy of the teacher's head on the student's test features
    class_agreement: (
        float  # of similarities of classes, test features against the teacher's (report/agreement.py)
    )
    class_agreement_p: float  # of chance
    seconds_per_epoch: float  # median, on one thread
    bound: BoundParts


@dataclass(frozen=True)
class Portrait:
    """A student for the picture and the file; no tensors, as those would cross processes in shared memory."""

    weights: bytes  # of a safetensors file
    features: np.ndarray  # (n, D) test
    labels: np.ndarray  # (n,)


def new_student(task: Task, seed: int) -> Classifier:
    """The same weights for every method at a seed."""
    torch.manual_seed(seed)
    return speech_cnn(len(task.speech.classes), WIDTH, mels=task.speech.x.shape[2])


def train_student(
    task: Task, contender: Contender, settings: DemoSettings, seed: int
) -> tuple[Outcome, Portrait]:
    """Train and measure."""
    voices = task.voices(settings.labels_per_class, seed)
    teacher = task.teacher.with_permuted_classes(seed) if contender.permuted else task.teacher
    student = new_student(task, seed)
    distiller = Distiller(
        student, teacher.model, contender.method, contender.preset, config=student_config(settings, seed)
    )
    result = distiller.fit(voices.labelled, teacher.train if distiller.method.uses_teacher else None)

    bank, held_out = FeatureBank.from_model(student, voices.test), teacher.held_out
    figures, bound = alignment(student.head, teacher.model.head, bank, held_out)
    outcome = Outcome(
        key=contender.key,
        seed=seed,
        accuracy=distiller.evaluate(voices.test)["accuracy"],
        test_samples=len(voices.test),
        val_accuracy=distiller.evaluate(voices.val)["accuracy"],
        seconds_per_epoch=statistics.median(epoch["seconds"] for epoch in result.history),
        bound=bound,
        **figures,
    )
    return outcome, Portrait(bytes_of(student.state_dict()), bank.x.numpy(), bank.labels.numpy())
