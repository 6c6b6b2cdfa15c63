"""What of the CUDA kernels can be switched in `_cuda._device`, and on which cards each way has been run.

The figures of a proven switch are in docs/gpu.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ._cuda import _device


class Card(NamedTuple):
    """A model of GPU: what torch's name of it holds, and its compute capability."""

    model: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.model} ({'.'.join(map(str, self.capability))})"

    def is_one(self, name: str, capability: tuple[int, int]) -> bool:
        """Whether a GPU of that name and capability is such a card."""
        return self.model in name.split() and self.capability == capability


class Switch(NamedTuple):
    """A switch of `_cuda._device`."""

    name: str
    does: str
    default: bool | None  # None: the kernels choose by predicted time
    proven: tuple[Card, ...]  # cards that have run it switched on and agreed with the float64 reference


H100 = Card("H100", (9, 0))

SWITCHES = (
    Switch("own_barrier", "a barrier of our own where several blocks solve a problem", True, (H100,)),
    Switch("streamed", "costs that do not fit are made where they are read, not stored in panels", None, ()),
    Switch("clusters", "thread-block clusters for medium problems (compute capability 9.0)", False, ()),
    Switch("tensor_cores", "products of half precision in streamed sweeps on tensor cores", False, ()),
)


def examine() -> dict[str, dict[str, Any]]:
    """Every switch by its name, as plain values; ``proven_here`` is None where there is no GPU."""
    return {
        s.name: {
            "does": s.does,
            "default": s.default,
            "now": getattr(_device, s.name),
            "proven": [str(card) for card in s.proven],
            "proven_here": _proven_here(s),
        }
        for s in SWITCHES
    }


def _proven_here(switch: Switch) -> bool | None:
    if not torch.cuda.is_available():
        return None
    here = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return any(card.is_one(*here) for card in switch.proven)


def in_words(found: dict[str, Any]) -> str:
    """One switch of `examine`: its state, what it does, where it has been run."""
    state = {True: "on", False: "off", None: "chosen by predicted time"}
    text = state[found["now"]]
    if found["now"] is not found["default"]:
        text += f" (default: {state[found['default']]})"
    where = f"run on {', '.join(found['proven'])}" if found["proven"] else "not yet run on a GPU"
    if found["proven"] and found["proven_here"] is not None:
        where += ", the card here" if found["proven_here"] else ", not on the card here"
    return f"{text}; {found['does']}; {where}"


def how_to(found: dict[str, dict[str, Any]]) -> str:
    """Which switches no GPU has run yet, and how to turn them on or off; empty where there are none."""
    unproven = {name: one["default"] for name, one in found.items() if not one["proven"]}
    off = [name for name, default in unproven.items() if default is False]
    used = [name for name, default in unproven.items() if default is not False]
    sentences = []
    if off:
        verb = "is" if len(off) == 1 else "are"
        sentences.append(
            f"{' and '.join(off)} {verb} off by default until a GPU has run them. To turn one on: "
            f"from ucmkd_fast.ops._cuda import _device; _device.{off[0]} = True"
        )
    sentences += [f"{name} may run by default: _device.{name} = False turns it off" for name in used]
    return ". ".join(sentences)
