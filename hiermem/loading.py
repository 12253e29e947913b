"""Finding a backbone: by hub id, folder or bundled name, in the dtype that the device is fast in."""

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hiermem.backbone import Backbone
from hiermem.bundled import BUNDLED_MODELS
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, first_line

_WEIGHTS = Path(__file__).parent / "weights"


def saved_model(name: str) -> Path | None:
    """The folder that `HierMemModel.save_pretrained` wrote: ``name``, or what ships under that name."""
    for folder in (_WEIGHTS / name, Path(name)):
        if os.path.isfile(folder / "config.json") and model_type(folder) == HierMemConfig.model_type:
            return folder
    return None


def bundled_models() -> list[str]:
    """Names of the models that need no download."""
    return [*BUNDLED_MODELS, *sorted(folder.parent.name for folder in _WEIGHTS.glob("*/config.json"))]


def model_type(folder: Path) -> str | None:
    """The kind of model that ``folder / "config.json"`` names.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'} is not a model's configuration ({error}).") from error


def load_backbone(
    name: str, revision: str | None, dtype: torch.dtype | str | None, device: torch.device
) -> tuple[PreTrainedModel, Any]:
    """A backbone and its tokenizer; ``dtype`` None is the checkpoint's own where the device has it.

    Raises:
        InputError: there is no such model.
    """
    path = str(BUNDLED_MODELS[name]()) if name in BUNDLED_MODELS else name
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        chosen = dtype or native_dtype(getattr(config, "dtype", None), device)
        backbone = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=chosen)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # whatever transformers makes of a folder that is not a model
        raise InputError(
            f"The model {name!r} could not be loaded ({first_line(error)}): give a folder with a model, "
            f"the id of one on the hub if you are online, or one of {', '.join(bundled_models())}."
        ) from error
    return backbone, tokenizer


def native_dtype(own: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The checkpoint's dtype where the device computes in it at speed, else float32."""
    if own is None or own == torch.float32:
        return torch.float32
    if device.type != "cpu":
        return own
    return torch.bfloat16 if _has_bf16_units() else torch.float32


def _has_bf16_units() -> bool:
    """Whether the processor multiplies in bf16 by itself; elsewhere bf16 is emulated, slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def backbone_hash(model: PreTrainedModel, adapter: Backbone, samples: int = 64) -> str:
    """SHA-256 over geometry, names, shapes and some evenly spaced values of every parameter."""
    digest = hashlib.sha256(f"{type(model).__name__} {adapter.trained_range}".encode())
    for shape in adapter.shapes:
        digest.update(f"{shape.window}".encode())
        if shape.rotary is not None:
            digest.update(f"{shape.rotary.interleaved}{shape.rotary.frequencies.tolist()}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(flat.numel() // samples, 1)].float().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does with a text."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    content = json.loads(backend.to_str())
    content["padding"] = content["truncation"] = None  # which calls leave behind
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
