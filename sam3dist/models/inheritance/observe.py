"""Watching a frozen teacher at work: what its modules read, token by token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Sam3Model

PHRASE_READERS = re.compile(
    r"text_encoder\.|text_projection$|dot_product_scoring\.text_mlp|.*(?:text|prompt)_cross_attn\.[kv]_proj$"
    r"|detr_encoder\..*\.cross_attn\.[kv]_proj$"
)
"""Modules that read the tokens [P, T, C] of phrases, some of which are padding."""


@contextmanager
def frozen(net: Sam3Model) -> Iterator[None]:
    """Inside, the network is in eval mode and no parameter asks for a gradient."""
    asked = [parameter for parameter in net.parameters() if parameter.requires_grad]
    training = net.training
    net.eval().requires_grad_(False)
    try:
        yield
    finally:
        net.train(training)
        for parameter in asked:
            parameter.requires_grad_(True)


class Watch:
    """Hooks on a network that are gone after `with`, and the knowledge which tokens of phrases are padding."""

    def __init__(self, net: Sam3Model) -> None:
        self.net = net
        self._masks: dict[bool, Tensor] = {}
        self._hooks: list[RemovableHandle] = [
            net.text_encoder.register_forward_pre_hook(self._see(True, "attention_mask"), with_kwargs=True),
            net.detr_encoder.register_forward_pre_hook(self._see(False, "text_mask"), with_kwargs=True),
        ]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def before(self, name: str, look: Callable[[nn.Module, Tensor], Tensor | None]) -> None:
        """Call `look(module, what it reads)` before it does; a result is read in place of that."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changed = look(module, args[0])
            return None if changed is None else (changed, *args[1:])

        self._hooks.append(self.net.get_submodule(name).register_forward_pre_hook(hook))

    def after(self, name: str, look: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        """Call `look(what it read, what it wrote)` after the module has; a result takes the place of the latter."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return look(args[0] if args else output, output)

        self._hooks.append(self.net.get_submodule(name).register_forward_hook(hook))

    def tokens(self, name: str, values: Tensor) -> Tensor:
        """The values [..., C] that this module reads or writes as [tokens, C], padding left out."""
        mask = self._mask(name)
        return values.reshape(-1, values.shape[-1]) if mask is None else values[mask]

    def cleared(self, name: str, values: Tensor) -> Tensor:
        """The same values with zeros in place of padding."""
        mask = self._mask(name)
        return values if mask is None else values * mask.unsqueeze(-1)

    def _mask(self, name: str) -> Tensor | None:
        # The text tower reads every phrase once, what follows once for every image that it is asked of.
        return self._masks[name.startswith("text_")] if PHRASE_READERS.match(name) else None

    def _see(self, in_tower: bool, key: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._masks[in_tower] = kwargs[key].bool()

        return hook


def channels_last(module: nn.Module, values: Tensor) -> Tensor:
    """What a module reads, with its channels in the last axis."""
    return values.movedim(1, -1) if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else values
