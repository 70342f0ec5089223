"""Batch norms folded into the convolutions before them, where the logits stay the same."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from segray.core.models import forward
from segray.errors import ModelError

FOLD_SIZE = (64, 96)  # height and width of the frame on which a folded model is tested
FOLD_TOLERANCE, FOLD_SAME = 1e-3, 0.9999  # share of the logits' spread; share of pixels with the same class


def fold_batch_norm(model: torch.nn.Module) -> torch.nn.Module:
    """Return an equal model in eval mode with batch norms folded into the convolutions; `model` is unchanged.

    If that changes the logits, or nothing can be folded, return `model` itself, and so for a model that does not take
    frames of the size of the test, or from elsewhere, which may not.
    """
    if getattr(model, "as_is", False):
        return model
    try:
        return _folded(model)
    except (ModelError, RuntimeError):  # an encoder of one size, as of CoAtNet or MaxViT
        return model


def _folded(model: torch.nn.Module) -> torch.nn.Module:
    folded = copy.deepcopy(model)
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in folded.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for conv, norm in _foldable(folded):
        for module, other in ((conv, fuse_conv_bn_eval(conv, norm)), (norm, torch.nn.Identity())):
            for name in names[module]:
                folded.set_submodule(name, other)
    image = torch.randn(2, 3, *FOLD_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = forward(model, image), forward(folded, image)
    near = (after - before).abs().max() <= FOLD_TOLERANCE * (before.max() - before.min())
    same = (after.argmax(1) == before.argmax(1)).float().mean() >= FOLD_SAME
    return folded if near and same else model


def _foldable(model: torch.nn.Module) -> list[tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]]:
    """List pairs of modules where the norm takes the very tensor that the convolution returned, and nothing else does.

    They are found in one forward pass; its tensors are kept meanwhile, so that no two have the same identity.
    """
    made: dict[torch.Tensor, torch.nn.Conv2d] = {}
    taken: list[tuple[torch.Tensor, torch.nn.BatchNorm2d]] = []
    calls: Counter[torch.nn.Module] = Counter()
    uses: Counter[torch.Tensor] = Counter()

    class Uses(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor | tuple | list):  # but not dim() or shape
                uses.update({leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)})
            return result

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[module] += 1
        if type(module) is torch.nn.Conv2d:  # a subclass may do more than convolve
            made[output] = module
        elif type(module) is torch.nn.BatchNorm2d:
            taken.append((args[0], module))

    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    hooks = [module.register_forward_hook(note) for module in model.modules() if type(module) in kinds]
    with torch.inference_mode(), Uses():
        forward(model, torch.zeros(1, 3, *FOLD_SIZE))
    for hook in hooks:
        hook.remove()
    return [
        (made[tensor], norm)
        for tensor, norm in taken
        if tensor in made and calls[made[tensor]] == calls[norm] == uses[tensor] == 1 and norm.running_mean is not None
    ]
