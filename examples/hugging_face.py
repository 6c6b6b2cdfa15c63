"""Hugging Face models on both sides: a vision transformer teaches an audio spectrogram transformer.

Both are tiny and untrained here, made from a configuration without a download. With a network,
``ViTModel.from_pretrained(...)`` and ``ASTModel.from_pretrained(...)`` take their places.

python examples/hugging_face.py
"""

import argparse

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, ViTConfig, ViTModel

import ucmkd_fast as uk
from ucmkd_fast.data import open_data

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--audio", help="folder of recordings")
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()

SIZE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


class Transformer(nn.Module):
    """The contract of the library: ``encode(x) -> (n, D)``, and a module ``head``."""

    def __init__(self, body: nn.Module, classes: int):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, classes)

    def encode(self, x: Tensor) -> Tensor:
        """The first token's state."""
        if isinstance(self.body.config, ASTConfig):
            x = x.squeeze(1).transpose(1, 2)  # (n, 1, mels, frames) -> (n, frames, mels)
        return self.body(x).last_hidden_state[:, 0]


images = open_data({"name": "digits", "split": "train"})
sounds = open_data(
    {"name": "spoken-digits", "root": arguments.audio, "split": "train", "labels_per_class": 5}
)
unheard = open_data({"name": "spoken-digits", "root": arguments.audio, "split": "test"})
mels, frames = sounds[0][0].shape[1:]

torch.manual_seed(0)
teacher = Transformer(ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, **SIZE)), classes=10)
ast = ASTConfig(num_mel_bins=mels, max_length=frames, patch_size=8, frequency_stride=8, time_stride=8, **SIZE)
student = Transformer(ASTModel(ast), classes=10)

train = {"optimizer": "adamw", "lr": 1e-3, "epochs": arguments.epochs}
uk.Distiller(teacher, method="ce", **train).fit(images)
distiller = uk.Distiller(student, teacher, "ucmkd", steps_per_epoch=5, batch_size=50, **train)
distiller.fit(sounds, images)
print(
    f"teacher: {100 * uk.Distiller(teacher, method='ce').evaluate(images)['accuracy']:.1f} % of its training images"
)
print(f"student: {100 * distiller.evaluate(unheard)['accuracy']:.1f} % on voices never heard")
