"""Any encoder of Hugging Face transformers as a model to distil: pictures, sound or text."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..extras import need
from ..ops.checks import choice
from .frames import FrameClassifier
from .layer import pooled
from .projector import with_width


class HuggingFaceEncoder(nn.Module):
    """Features (n, D) of a transformers model.

    Integer inputs (n, length) are tokens, with a mask where they are not padding; anything
    else is handed over as it is.

    Args:
        net: the model.
        pool: "auto": its own pooled output where it has one, else the first token; "first"; "tokens": the mean
            over all tokens that are not padding.
    """

    def __init__(self, net: Any, pool: str = "auto"):
        super().__init__()
        choice("pool", pool, ("auto", "first", "tokens"))
        self.net, self.pool = net, pool

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, D) of inputs x (n, ...)."""
        if x.is_floating_point():
            output, mask = self.net(x), None
        else:
            padding = getattr(self.net.config, "pad_token_id", None)
            mask = x.ne(padding) if padding is not None else x.new_ones(x.shape).bool()
            output = self.net(input_ids=x, attention_mask=mask.long())
        own = getattr(output, "pooler_output", None)
        if self.pool == "auto" and own is not None:
            return own.flatten(1)
        last = output.last_hidden_state
        if self.pool == "tokens" and mask is not None and last.dim() == 3:
            weights = mask.to(last.dtype)[..., None]
            return (last * weights).sum(1) / weights.sum(1).clamp_min(1)
        if last.dim() > 3:
            return pooled(last, "mean")
        return pooled(last, "tokens" if self.pool == "tokens" else "first")


def hugging_face(
    model: str,
    classes: int,
    width: int | None = None,
    pretrained: bool = True,
    revision: str = "main",
    pool: str = "auto",
) -> nn.Module:
    """An encoder by its name on Hugging Face, or its folder; no code from there is run.

    Args:
        model: name or folder.
        classes: how many.
        width: of the features, by a linear layer; None: the network's own.
        pretrained: False: only the settings are read, the weights drawn.
        revision: branch, tag or commit.
        pool: see `HuggingFaceEncoder`.

    Raises:
        ImportError: transformers is not installed.
        OSError: the model cannot be had.
        ValueError: its settings do not say how wide its features are.
    """
    transformers = need("transformers")
    if pretrained:
        net = from_hub(transformers.AutoModel, model, revision)
    else:
        commit = _commit(model, revision)
        config = transformers.AutoConfig.from_pretrained(
            model, revision=commit or revision, trust_remote_code=False
        )
        net = transformers.AutoModel.from_config(config, trust_remote_code=False)
        net.hub_commit = commit
    sizes = getattr(net.config, "hidden_sizes", None)
    own = sizes[-1] if sizes else getattr(net.config, "hidden_size", None)
    if not isinstance(own, int):
        raise ValueError(
            f"the settings of {model!r} do not say hidden_size; wrap the model in "
            "ucmkd_fast.models.classifier_of_layer"
        )
    head = nn.Linear(own, classes)
    return with_width(FrameClassifier(HuggingFaceEncoder(net, pool), head), width)


def from_hub(kind: Any, name: str, revision: str = "main", **options: Any) -> Any:
    """A model of transformers with its weights, all of one commit, which `commit_of` then tells; in float32.

    Args:
        kind: its class in transformers.
        name: on Hugging Face, or a folder.
        revision: branch, tag or commit.
        **options: of ``from_pretrained``.

    Raises:
        OSError: the model cannot be had.
    """
    commit = _commit(name, revision)
    net = kind.from_pretrained(name, revision=commit or revision, trust_remote_code=False, **options)
    net.float()  # some are stored, and loaded, in half precision
    net.hub_commit = commit
    return net


def commit_of(model: nn.Module) -> str | None:
    """The commit on Hugging Face that a model's weights or settings came from; None where there is none."""
    found = (getattr(module, "hub_commit", None) for module in model.modules())
    return next((commit for commit in found if commit is not None), None)


def _commit(name: str, revision: str) -> str | None:
    """What a revision is now; None for a folder."""
    utils = need("transformers.utils")
    return utils.extract_commit_hash(utils.cached_file(name, "config.json", revision=revision), None)
