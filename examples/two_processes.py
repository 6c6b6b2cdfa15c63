"""The same script on one process or on several: each takes its share of every batch, FA sees the whole of it.

accelerate launch --cpu --num_processes 2 examples/two_processes.py
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

import ucmkd_fast as uk
from ucmkd_fast.data import open_data
from ucmkd_fast.models import digit_cnn, speech_cnn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--audio", help="folder of recordings")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--output", type=Path, default=Path("runs/two-processes"))
arguments = parser.parse_args()

processes = PartialState()
with processes.main_process_first():  # one downloads or reads, the others find it in the cache
    images = open_data({"name": "digits", "split": "train"})
    sounds = open_data(
        {"name": "spoken-digits", "root": arguments.audio, "split": "train", "labels_per_class": 5}
    )
    unheard = open_data({"name": "spoken-digits", "root": arguments.audio, "split": "test"})

torch.manual_seed(0)  # rank 0's weights are everybody's anyway
teacher, student = digit_cnn(), speech_cnn()
uk.Distiller(teacher, method="ce", epochs=5, lr=0.05).fit(images)
distiller = uk.Distiller(
    student,
    teacher,
    "ucmkd",
    epochs=arguments.epochs,
    steps_per_epoch=5,
    batch_size=50,
    lr=0.05,
    output_dir=arguments.output,
)
distiller.fit(sounds, images, resume=True)  # goes on after a kill
accuracy = distiller.evaluate(unheard)["accuracy"]
processes.print(f"{processes.num_processes} processes: {100 * accuracy:.1f} % on voices never heard")
