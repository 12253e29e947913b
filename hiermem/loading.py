"""Finding a backbone: by hub id, folder, GGUF file or bundled name, in a dtype that the device is fast in."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hiermem.bundled import BUNDLED_GGUF, BUNDLED_MODELS
from hiermem.config import HierMemConfig
from hiermem.errors import BackboneUnsupportedError, InputError, plainly
from hiermem.gguf_conversion import gguf_folder
from hiermem.gguf_file import check_gguf, is_gguf
from hiermem.load_options import LoadOptions
from hiermem.model_files import check_files, read_json
from hiermem.model_folder import finish
from hiermem.retrieval.disk import sha256_of
from hiermem.shipped import WEIGHTS

_SAVED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


# ---- models that hiermem saved


def saved_model(name: str) -> Path | None:
    """The folder of a model that `HierMemModel.save_pretrained` wrote: ``name``, or one that ships so."""
    for folder in (WEIGHTS / name, Path(name)):
        finish(folder)
        if os.path.isfile(folder / "config.json") and model_type(folder) == HierMemConfig.model_type:
            return folder
    return None


def as_reachable(name: str, options: LoadOptions) -> LoadOptions:
    """The options to load a model of this name with: where the hub does not answer, from its cache alone.

    It is asked once: the library would repeat each of many questions for half a minute.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if not _is_of_hub(name) or options.hub.get("local_files_only"):
        return options
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), token=options.hub.get("token"))
    except (HfHubHTTPError, ValueError):  # it answers; whoever loads the model says what is wrong
        return options
    except Exception:
        return replace(options, hub={**options.hub, "local_files_only": True})
    return options


def _is_of_hub(name: str) -> bool:
    """Whether nothing here is called so, and a model on the hub may be."""
    here = Path(name).exists() or is_gguf(name) or name in BUNDLED_MODELS
    return bool(_HUB_ID.fullmatch(name)) and not here


def saved_on_hub(name: str, options: LoadOptions) -> Path | None:
    """The local copy of a model on the hub that `HierMemModel.save_pretrained` wrote; None: it is another."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if not _is_of_hub(name):
        return None
    hub = {key: value for key, value in options.hub.items() if key not in ("subfolder", "proxies")}
    if "subfolder" in options.hub:
        return None
    try:
        config = Path(hf_hub_download(name, "config.json", **hub))
    except Exception:  # whoever loads the backbone says what is wrong
        return None
    if model_type(config.parent) != HierMemConfig.model_type:
        return None
    with plainly(f"The model {name!r} could not be loaded", "try again when you are online"):
        return Path(snapshot_download(name, allow_patterns=_SAVED_FILES, **hub))


def bundled_models() -> list[str]:
    """Names of the models that need no download."""
    return [*BUNDLED_MODELS, *sorted(folder.parent.name for folder in WEIGHTS.glob("*/config.json"))]


def model_type(folder: Path) -> str | None:
    """The kind of model that ``folder / "config.json"`` names.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a model's configuration.")
    kind = values.get("model_type")
    return kind if isinstance(kind, str) else None


# ---- backbones


def check_reference(name: str, folder: Path) -> None:
    """Refuse the name that a saved model has for its backbone where that leads to no plain backbone.

    Raises:
        InputError: it is empty, a relative path, or another saved model.
    """
    if name in BUNDLED_MODELS:
        return
    if not name:
        raise InputError(f"The model at {folder} names no backbone: save it again.")
    if not os.path.isabs(name) and (not _HUB_ID.fullmatch(name) or os.path.exists(name)):
        raise InputError(
            f"The model at {folder} names its backbone by the relative path {name!r}, which leads elsewhere "
            f"from every folder: write the full path of the backbone there."
        )
    if saved_model(name) is not None:
        raise InputError(f"The model at {folder} has no backbone but {name}: save it again.")


def load_backbone(
    name: str, options: LoadOptions, saved_config: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, Any]:
    """A backbone and its tokenizer; None where a saved model had none.

    Args:
        name: hub id, folder, GGUF file or bundled name.
        options: how to load it.
        saved_config: configuration of the backbone, where a saved model in the folder ``name`` holds its
            weights.

    Raises:
        InputError: there is no such model, or it brings code along that is not trusted.
        BackboneUnsupportedError: it was spread over several devices.
    """
    from transformers import AutoModelForCausalLM  # whose import imports hiermem.model, which imports this

    path, options = _plain_format(name, options)
    if os.path.isdir(path):
        check_files(Path(path, options.hub.get("subfolder", "")), inside=False)
    common = {**options.hub, "trust_remote_code": options.trust_remote_code}
    mapping: dict[str, Any] = {}
    if saved_config is not None:  # sizes that differ are refused by name
        mapping = {"key_mapping": {r"^backbone\.": ""}, "ignore_mismatched_sizes": True}
    remedy = (
        f"give a folder with a model, a GGUF file, the id of one on the hub if you are online, or one of "
        f"{', '.join(bundled_models())}"
    )
    with plainly(f"The model {name!r} could not be loaded", remedy):
        config = AutoConfig.from_pretrained(path, **common) if saved_config is None else saved_config
        dtype = options.dtype or native_dtype(getattr(config, "dtype", None), options.place)
        weights = {"use_safetensors": True, **options.backbone}
        with _quiet_about_memories(saved_config is not None):
            backbone, loading_info = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, **weights, **mapping, **common
            )
        if saved_config is not None:
            _check_complete(loading_info, path)
        has_tokenizer = saved_config is None or Path(path, "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(path, options) if has_tokenizer else None
    devices = set(map(str, getattr(backbone, "hf_device_map", {}).values()))
    if len(devices) > 1:
        raise BackboneUnsupportedError(
            f"the model {name!r} was spread over {', '.join(sorted(devices))}, and hiermem computes on one "
            f"device: give device in place of device_map, or a smaller dtype"
        )
    return backbone, tokenizer


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a model of this name has its weights from; None: there is none."""
    if name in BUNDLED_GGUF:
        return BUNDLED_GGUF[name]()
    return Path(name) if is_gguf(name) else None


def pinned(name: str, options: LoadOptions) -> LoadOptions:
    """The options to load a GGUF file with: its SHA-256 is its revision, which saved models keep.

    Raises:
        InputError: it cannot be read, or an option does not go with it.
    """
    if "subfolder" in options.hub:
        raise InputError(f"{name} is a file and has no subfolders: leave subfolder out.")
    check_gguf(Path(name))
    given = options.hub.get("revision")
    if given is not None and not _SHA256.fullmatch(given):
        raise InputError(f"The revision of a GGUF file is its SHA-256, 64 hexadecimal digits, not {given!r}.")
    return replace(options, hub={**options.hub, "revision": given or sha256_of(Path(name))})


def _plain_format(name: str, options: LoadOptions) -> tuple[str, LoadOptions]:
    """The place that transformers loads a backbone from, and how: of one in another format, the cache."""
    if name in BUNDLED_MODELS:
        return str(BUNDLED_MODELS[name]()), options
    if not is_gguf(name):
        return name, options
    return str(gguf_folder(Path(name), options.hub.get("revision"))), options.without("revision")


def load_tokenizer(path: str | os.PathLike[str], options: LoadOptions) -> Any:
    """The tokenizer of a folder or of a model on the hub."""
    return AutoTokenizer.from_pretrained(path, **options.hub, trust_remote_code=options.trust_remote_code)


def _check_complete(loading_info: Mapping[str, Any], folder: str) -> None:
    """Refuse weights of which transformers initialised some itself."""
    missing = [*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])]
    if missing:
        raise InputError(
            f"The backbone's weights in the model at {folder} lack {', '.join(sorted(missing)[:3])}, or have "
            f"it in another shape: save the model again, or restore it from a copy."
        )


@contextmanager
def _quiet_about_memories(quiet: bool) -> Iterator[None]:
    """Keep transformers from reporting the memory's parameters beside a backbone's as unexpected."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def native_dtype(saved: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The checkpoint's dtype where the device computes in it at speed, else float32."""
    if saved is None or saved == torch.float32:
        return torch.float32
    if device.type != "cpu":
        return saved
    return torch.bfloat16 if _has_bf16_units() else torch.float32


def _has_bf16_units() -> bool:
    """Whether the processor multiplies in bf16 by itself; elsewhere bf16 is emulated, slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
