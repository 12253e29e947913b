"""Finding a backbone: by hub id, folder or bundled name, in the dtype that the device is fast in."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hiermem.bundled import BUNDLED_MODELS
from hiermem.config import HierMemConfig
from hiermem.errors import BackboneUnsupportedError, HierMemError, InputError, first_line
from hiermem.model_files import check_files, read_json
from hiermem.model_folder import finish

_WEIGHTS = Path(__file__).parent / "weights"

_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "subfolder")
_BACKBONE = (
    "attn_implementation",
    "device_map",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "quantization_config",
    "use_safetensors",
    "variant",
)
# What transformers' Auto classes and pipelines hand on of their own.
_FROM_AUTO = ("_from_auto", "_from_pipeline", "_commit_hash")
_SAVED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, as transformers' `from_pretrained` calls it.

    Attributes:
        dtype: of the backbone; None: its own where the device has it.
        device: where to compute; None: a GPU if there is one, or what `device_map` says.
        hub: where files come from.
        backbone: what the backbone is loaded with.
        trust_remote_code: whether code that a model brings along may run.
    """

    dtype: torch.dtype | str | None = None
    device: torch.device | str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    @classmethod
    def of(cls, dtype: Any, device: Any, given: Mapping[str, Any]) -> "LoadOptions":
        """The options of a call, by their names.

        Raises:
            InputError: one is unknown, or two contradict each other.
        """
        given = {name: value for name, value in given.items() if name not in _FROM_AUTO}
        if (same := given.pop("torch_dtype", None)) is not None:
            if dtype is not None and dtype != same:
                raise InputError("dtype and torch_dtype are one option: give one of them.")
            dtype = same
        trust = bool(given.pop("trust_remote_code", None))
        adapter = given.pop("adapter_kwargs", None) or {}  # which the Auto classes fill in themselves
        for unknown in [n for n in given if n not in (*_HUB, *_BACKBONE, "code_revision")]:
            raise InputError(f"There is no option {unknown!r}: memory settings go into config.")
        for unknown in adapter.keys() - {"revision", "token"}:
            raise InputError(f"There is no option {unknown!r} in adapter_kwargs: leave it out.")
        if device is not None and given.get("device_map") is not None:
            raise InputError("device and device_map contradict each other: give one of them.")
        if given.pop("code_revision", None) is not None and not trust:
            raise InputError("code_revision is of code that only trust_remote_code=True runs: leave it out.")
        hub = {name: given[name] for name in _HUB if given.get(name) is not None}
        backbone = {name: given[name] for name in _BACKBONE if given.get(name) is not None}
        return cls(dtype, device, hub, backbone, trust)

    @property
    def place(self) -> torch.device:
        """Where to compute, unless `device_map` says."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def without(self, *names: str) -> "LoadOptions":
        """The same without what says which files of a repository are meant."""
        hub = {name: value for name, value in self.hub.items() if name not in names}
        return LoadOptions(self.dtype, self.device, hub, self.backbone, self.trust_remote_code)


# ---- models that hiermem saved


def saved_model(name: str) -> Path | None:
    """The folder that `HierMemModel.save_pretrained` wrote: ``name``, or what ships under that name."""
    for folder in (_WEIGHTS / name, Path(name)):
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
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists() and name not in BUNDLED_MODELS


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
    return [*BUNDLED_MODELS, *sorted(folder.parent.name for folder in _WEIGHTS.glob("*/config.json"))]


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
    """Refuse a saved model's word for its backbone where it leads to no plain backbone.

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
    name: str, options: LoadOptions, own: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, Any]:
    """A backbone and its tokenizer; None where a saved model had none.

    Args:
        name: hub id, folder or bundled name.
        own: configuration of the backbone whose weights the saved model in the folder ``name`` holds.

    Raises:
        InputError: there is no such model, or it brings code along that is not trusted.
        BackboneUnsupportedError: it was spread over several devices.
    """
    from transformers import AutoModelForCausalLM  # whose import imports hiermem.model, which imports this

    path = str(BUNDLED_MODELS[name]()) if name in BUNDLED_MODELS else name
    if os.path.isdir(path):
        check_files(Path(path, options.hub.get("subfolder", "")), inside=False)
    common = {**options.hub, "trust_remote_code": options.trust_remote_code}
    mapping: dict[str, Any] = {}
    if own is not None:  # sizes that differ are refused by name
        mapping = {"key_mapping": {r"^backbone\.": ""}, "ignore_mismatched_sizes": True}
    remedy = (
        f"give a folder with a model, the id of one on the hub if you are online, or one of "
        f"{', '.join(bundled_models())}"
    )
    with plainly(f"The model {name!r} could not be loaded", remedy):
        config = AutoConfig.from_pretrained(path, **common) if own is None else own
        dtype = options.dtype or native_dtype(getattr(config, "dtype", None), options.place)
        weights = {"use_safetensors": True, **options.backbone}
        with _quiet_about_memories(own is not None):
            backbone, found = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, **weights, **mapping, **common
            )
        if own is not None:
            _check_complete(found, path)
        has_one = own is None or Path(path, "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(path, options) if has_one else None
    devices = set(map(str, getattr(backbone, "hf_device_map", {}).values()))
    if len(devices) > 1:
        raise BackboneUnsupportedError(
            f"the model {name!r} was spread over {', '.join(sorted(devices))}, and hiermem computes on one "
            f"device: give device in place of device_map, or a smaller dtype"
        )
    return backbone, tokenizer


def load_tokenizer(path: str | os.PathLike[str], options: LoadOptions) -> Any:
    """The tokenizer of a folder or of a model on the hub."""
    return AutoTokenizer.from_pretrained(path, **options.hub, trust_remote_code=options.trust_remote_code)


def _check_complete(found: Mapping[str, Any], folder: str) -> None:
    """Refuse weights of which transformers made up some, as it says in ``found``."""
    lost = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
    if lost:
        raise InputError(
            f"The backbone's weights in the model at {folder} lack {', '.join(sorted(lost)[:3])}, or have "
            f"it in another shape: save the model again, or restore it from a copy."
        )


@contextmanager
def _quiet_about_memories(wanted: bool) -> Iterator[None]:
    """Keep transformers from reporting the memory's parameters beside a backbone's as unexpected."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if wanted:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def plainly(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library makes of damaged or foreign files into one sentence.

    Raises:
        InputError: in place of any other error.
    """
    try:
        yield
    except HierMemError:
        raise
    except BaseException as error:
        # Panics of tokenizers are no Exception; what stops a program is none either, and goes on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} ({first_line(error)}): {remedy}.") from error


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
