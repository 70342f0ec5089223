"""In which numbers a model is computed: one rule for training and labelling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from segray.errors import ConfigError
from segray.sections.labelling import InferSection
from segray.sections.training import TrainSection

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # autocast's dtype of each precision


def autocast_dtype(section: TrainSection | InferSection, device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype, None for float32; auto is a GPU's fast one, and bf16 for training on a CPU with AMX.

    Labels on CPUs are fp32 unless asked otherwise, so that the nodes of one run make the same ones.
    Raises ConfigError for a precision that the device lacks or is slow at.
    """
    name = "train.precision" if isinstance(section, TrainSection) else "infer.precision"
    if section.precision == "auto":
        if device.type == "cuda":
            return _fast_dtype(device)
        return torch.bfloat16 if isinstance(section, TrainSection) and cpu_has("amx_bf16") else None
    if section.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"{name} fp16 needs a GPU; take fp32, or auto.")
    if section.precision == "bf16" and device.type != "cuda" and not cpu_has("avx512_bf16", "amx_bf16", "bf16"):
        raise ConfigError(f"{name} bf16: this CPU lacks the instructions and would be ten times slower; "
                          "take fp32, or auto.")  # fmt: skip
    return DTYPES[section.precision]


def autocast(section: TrainSection | InferSection, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in autocast_dtype()."""
    dtype = autocast_dtype(section, device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast once what autocast casts at each call: the weights of plain convolutions and linear layers.

    The results are the same. Subclasses may compute something of their weights first, and autocast leaves norms alone.
    """
    for module in model.modules():
        if type(module) in (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear):
            module.to(dtype)


def name_of(dtype: torch.dtype | None) -> str:
    """Return a dtype's name in the settings."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def cpu_has(*names: str) -> bool:
    """Say whether the CPU has one of these instruction sets, in PyTorch's names."""
    # Only newer torch lists them; without the list, assume that there is none.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in names)


def _fast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 for a GPU of compute capability 8.0 or later, else fp16.

    Older GPUs emulate bf16 slowly, and torch.cuda.is_bf16_supported() counts that as support.
    """
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
