"""The teacher's encoder runs once over its data; after that only its features and its head are needed.

python examples/cached_features.py
"""

import argparse
from pathlib import Path

import torch

import ucmkd_fast as uk
from ucmkd_fast.data import FeatureBank, open_data
from ucmkd_fast.models import Classifier, digit_cnn, speech_cnn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--audio", help="folder of recordings")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--bank", type=Path, default=Path("teacher-features.safetensors"))
arguments = parser.parse_args()

# Once, perhaps on a machine with a GPU and a large encoder.
images = open_data({"name": "digits", "split": "train"})
torch.manual_seed(0)
teacher = digit_cnn()
uk.Distiller(teacher, method="ce", epochs=5, lr=0.05).fit(images)
FeatureBank.from_model(teacher, images, about={"encoder": "digit_cnn"}).save(arguments.bank)

# As often as you like, without images and without the encoder.
bank = FeatureBank.load(arguments.bank)
teacher = Classifier(torch.nn.Identity(), teacher.head)
sounds = open_data(
    {"name": "spoken-digits", "root": arguments.audio, "split": "train", "labels_per_class": 5}
)
unheard = open_data({"name": "spoken-digits", "root": arguments.audio, "split": "test"})
for method in ("ce", "kd", "ucmkd"):
    torch.manual_seed(0)
    distiller = uk.Distiller(
        speech_cnn(), teacher, method, epochs=arguments.epochs, steps_per_epoch=5, batch_size=50, lr=0.05
    )
    distiller.fit(sounds, bank)
    print(f"{method}: {100 * distiller.evaluate(unheard)['accuracy']:.1f} % on voices never heard")
