"""Options of loading a model, checked: an unknown one is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hiermem.errors import InputError
from hiermem.half_weights import HalfWeightsConfig, check_processor

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
# Arguments that transformers' Auto classes and pipelines add of their own.
_FROM_AUTO = ("_from_auto", "_from_pipeline", "_commit_hash")


@dataclass(frozen=True)
class LoadOptions:
    """Options of loading a model, by the names of transformers' `from_pretrained`.

    Attributes:
        dtype: dtype of the backbone; None: its own where the device has it.
        device: where to compute; None: a GPU if there is one, or what `device_map` says.
        hub: options that say where files come from.
        backbone: options that transformers loads the backbone with.
        trust_remote_code: whether code that a model brings along may run.
    """

    dtype: torch.dtype | str | None = None
    device: torch.device | str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    @classmethod
    def of(cls, dtype: Any, device: Any, options: Mapping[str, Any]) -> "LoadOptions":
        """The options of a call, by their names.

        Raises:
            InputError: one is unknown, or two contradict each other.
        """
        options = {name: value for name, value in options.items() if name not in _FROM_AUTO}
        if (torch_dtype := options.pop("torch_dtype", None)) is not None:
            if dtype is not None and dtype != torch_dtype:
                raise InputError("dtype and torch_dtype are one option: give one of them.")
            dtype = torch_dtype
        trust = bool(options.pop("trust_remote_code", None))
        adapter = options.pop("adapter_kwargs", None) or {}  # which the Auto classes fill in themselves
        for unknown in [name for name in options if name not in (*_HUB, *_BACKBONE, "code_revision")]:
            raise InputError(f"There is no option {unknown!r}: memory settings go into config.")
        for unknown in adapter.keys() - {"revision", "token"}:
            raise InputError(f"There is no option {unknown!r} in adapter_kwargs: leave it out.")
        if device is not None and options.get("device_map") is not None:
            raise InputError("device and device_map contradict each other: give one of them.")
        if options.pop("code_revision", None) is not None and not trust:
            raise InputError("code_revision is of code that only trust_remote_code=True runs: leave it out.")
        if isinstance(options.get("quantization_config"), HalfWeightsConfig):
            if dtype not in (None, torch.float32, "float32"):
                raise InputError(f"Weights in float16 are multiplied in float32: leave dtype {dtype} out.")
            if options.get("device_map") is not None:
                raise InputError("Weights in float16 are for the processor alone: leave device_map out.")
            check_processor(cls(device=device).place)
            dtype = torch.float32
        elif options.get("quantization_config") is not None and options.get("device_map") is None:
            # What is quantised while it is loaded is made where it stays.
            options["device_map"] = {"": str(cls(device=device).place)}
        hub = {name: options[name] for name in _HUB if options.get(name) is not None}
        backbone = {name: options[name] for name in _BACKBONE if options.get(name) is not None}
        return cls(dtype, device, hub, backbone, trust)

    @property
    def place(self) -> torch.device:
        """The device that computes, unless `device_map` says."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def without(self, *names: str) -> "LoadOptions":
        """The same options without some of those that say where files come from."""
        hub = {name: value for name, value in self.hub.items() if name not in names}
        return LoadOptions(self.dtype, self.device, hub, self.backbone, self.trust_remote_code)
