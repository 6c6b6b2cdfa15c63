"""The losses in a training loop of your own: cross-entropy, feature alignment and label alignment in one sum.

python examples/own_loop.py
"""

import argparse

import torch
import torch.nn.functional as F

import ucmkd_fast as uk
from ucmkd_fast.data import UnpairedLoader, open_data
from ucmkd_fast.models import digit_cnn, speech_cnn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--audio", help="folder of recordings")
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()

images = open_data({"name": "digits", "split": "train"})
sounds = open_data(
    {"name": "spoken-digits", "root": arguments.audio, "split": "train", "labels_per_class": 5}
)
unheard = open_data({"name": "spoken-digits", "root": arguments.audio, "split": "test"})

torch.manual_seed(0)
teacher, student = digit_cnn(), speech_cnn()
uk.Distiller(teacher, method="ce", epochs=5, lr=0.05).fit(images)
teacher.eval().requires_grad_(False)

optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
batches = UnpairedLoader(sounds, images, batch_size=50, teacher_batch_size=128, steps_per_epoch=5)
for epoch in range(arguments.epochs):
    batches.set_epoch(epoch)
    student.train()
    for batch in batches:
        with torch.no_grad():
            teacher_feature = teacher.encode(batch.teacher_x)
        feature = student.encode(batch.x)
        logits = student.head(feature)
        ce = F.cross_entropy(logits, batch.y)
        fa = uk.sinkhorn_loss(feature, teacher_feature, metric="cosine", reg=0.1)
        la = uk.label_transport_loss(logits, teacher.head(feature), batch.y)
        optimizer.zero_grad()
        (ce + 0.1 * fa + 0.1 * la).backward()
        optimizer.step()

student.eval()
with torch.no_grad():
    x, y = unheard.batch(torch.arange(len(unheard)))
    accuracy = (student(x).argmax(1) == y).float().mean().item()
print(f"cross-entropy {ce.item():.3f}, FA {fa.item():.3f}, LA {la.item():.3f}")
print(f"{100 * accuracy:.1f} % of {len(y)} recordings of voices never heard are read right")
