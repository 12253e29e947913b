"""Models from disk or the hub: around a plain backbone, or as they were saved (`hiermem.saving`)."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from hiermem import lora
from hiermem.config import HierMemConfig, check_config
from hiermem.errors import InputError, plainly
from hiermem.eviction_weights import AUTO, NONE, bundled, is_evolved, resolve_eviction_weights
from hiermem.fingerprint import WeightsDigest
from hiermem.gguf_file import is_gguf
from hiermem.load_options import LoadOptions
from hiermem.loading import (
    as_reachable,
    check_reference,
    load_backbone,
    load_tokenizer,
    pinned,
    saved_model,
    saved_on_hub,
)
from hiermem.memory.kv.prompt import KVPromptConfig
from hiermem.memory.policies import LinearPolicy
from hiermem.memory.policies.linear import UNSET
from hiermem.memory.state_encoder import StateEncoderConfig
from hiermem.memory_parameters import load_memory_parameters
from hiermem.model_files import read_json
from hiermem.model_folder import BACKBONE, INDEX, SAMPLE, WEIGHTS, check
from hiermem.pretrained import HierMemPreTrainedModel
from hiermem.seal import REMEDY

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=HierMemPreTrainedModel)

_SEALED_FROM = 3
"""The first format with a seal."""


def load(
    kind: type[_Model],
    name_or_path: str | os.PathLike[str],
    config: HierMemConfig | None,
    options: LoadOptions,
) -> _Model:
    """Load a plain backbone or a saved model; see `HierMemModel.from_pretrained`."""
    if config is not None:
        check_config(config)
    name = os.fspath(name_or_path)
    if is_gguf(name):
        name = os.path.abspath(name)
        options = pinned(name, options)
    folder = Path(name)
    local = os.path.isdir(folder)
    if local:
        folder = folder / options.hub.get("subfolder", "")
    if (saved := saved_model(str(folder))) is not None:
        if "revision" in options.hub:
            raise InputError(f"The model at {folder} has no revisions: leave revision out.")
        saved_options = options.without("subfolder")
    else:
        options = as_reachable(name, options)
        saved, saved_options = saved_on_hub(name, options), options.without("revision")
    if saved is None:
        name = str(folder.resolve()) if local else name  # a saved model must find its backbone from anywhere
        model = _from_backbone(kind, name, config, options.without("subfolder") if local else options)
        if model.kv_prompt is not None and not model.kv_prompt.is_set:
            raise InputError(
                f"{name} has no prompt of {model.kv_prompt.num_tokens} keys and values: leave "
                f"kv_prompt.tokens out, or train one with the recipe kv."
            )
        if model.state_encoder is not None and not model.state_encoder.is_set:
            raise InputError(
                f"{name} has no encoder of its layers {model.state_encoder.layers}: leave "
                f"state_encoder.layers out, or train one with the recipe states."
            )
    else:
        model = _from_saved(kind, saved, config, saved_options)
    if model.config.working.policy == LinearPolicy.name and not model.scorer.is_set:
        raise InputError(UNSET)
    model.name_or_path = str(folder.resolve()) if local else name
    return model.eval()


def _from_backbone(
    kind: type[_Model], name: str, config: HierMemConfig | None, options: LoadOptions
) -> _Model:
    config = config or HierMemConfig.preset("full")
    resolve_eviction_weights(config.evictor, name, config.working.policy)  # refused before all loading
    backbone, tokenizer = load_backbone(name, options)
    return _around(kind, backbone, tokenizer, config, name, options)


def _around(
    kind: type[_Model],
    backbone: PreTrainedModel,
    tokenizer: Any,
    config: HierMemConfig,
    name: str,
    options: LoadOptions,
) -> _Model:
    """The model around a backbone of that name."""
    named = {"backbone": name, "backbone_revision": options.hub.get("revision")}
    digest = WeightsDigest.of(backbone.state_dict())
    model = kind(HierMemConfig(**{**config.settings(), **named}), backbone, tokenizer)
    model.loaded_weights = digest
    if "device_map" not in options.backbone:
        return model.to(options.place)
    for part in (model.namm, model.scorer, model.mamba, model.summary, model.kv_prompt, model.state_encoder):
        if part is not None:
            part.to(backbone.device)
    return model


def _from_saved(
    kind: type[_Model], folder: Path, config: HierMemConfig | None, options: LoadOptions
) -> _Model:
    with plainly(f"The model at {folder} is not complete", REMEDY):
        check(folder)
        saved = _saved_config(folder)
        parameters = dict(_memory_tensors(folder))
        config = saved if config is None else config.with_parts_of(saved)
        if config.evictor == AUTO and _has_network(parameters, config.working.policy):
            config = config.with_network_of(saved)
        elif config.evictor != NONE:  # the network that is saved gives way to the one that is asked for
            gone = ("namm.",) if config.evictor == AUTO else ("namm.", "scorer.")
            parameters = {n: t for n, t in parameters.items() if not n.startswith(gone)}
        if _holds_backbone(folder):
            backbone_config = AutoConfig.from_pretrained(
                folder / BACKBONE, trust_remote_code=options.trust_remote_code, local_files_only=True
            )
            backbone, tokenizer = load_backbone(str(folder), options, backbone_config)
            model = _around(kind, backbone, tokenizer, config, saved.backbone, options)
            model.loaded_weights = None  # the folder may be replaced: it is saved whole again
        else:
            check_reference(saved.backbone, folder)
            revision = {"revision": saved.backbone_revision} if saved.backbone_revision else {}
            named = LoadOptions(
                options.dtype,
                options.device,
                {**options.hub, **revision},
                options.backbone,
                options.trust_remote_code,
            )
            model = _from_backbone(kind, saved.backbone, config, as_reachable(saved.backbone, named))
            _say_where_from(model, folder)
        load_memory_parameters(model, parameters)
        lora.load_adapters(model.backbone, folder)
        if (folder / "tokenizer_config.json").is_file():
            model.tokenizer = load_tokenizer(folder, LoadOptions(trust_remote_code=options.trust_remote_code))
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _has_network(parameters: Mapping[str, Tensor], policy: str) -> bool:
    """Whether a saved model has what the policy scores with; NAMM's is kept along for all others."""
    if policy == LinearPolicy.name:
        return any(name.startswith("scorer.") for name in parameters)
    return is_evolved(parameters)


def _say_where_from(model: HierMemPreTrainedModel, folder: Path) -> None:
    """Warn where a folder's word leads to a backbone elsewhere that is not known to be the one it means."""
    name, digest = model.config.backbone, model.loaded_weights
    sample = read_json(folder / "config.json").get(SAMPLE)
    if os.path.isabs(name) and (digest is None or sample != digest.sample):
        _log.warning(
            f"The model at {folder} takes its backbone from {name}, which is not known to be the one that it "
            f"was saved with; if it is, save the model again."
        )


def _saved_config(folder: Path) -> HierMemConfig:
    """The configuration in a saved model's folder.

    Raises:
        InputError: it is damaged, of a newer format, or leads elsewhere.
    """
    config = HierMemConfig.from_saved(folder)
    if _is_sealed(folder):
        check(folder, sealed=True)
    if config.evictor not in (AUTO, NONE, *bundled()):
        raise InputError(
            f"The model at {folder} names an evictor at {config.evictor!r}, outside its folder: give the "
            f"evictor in a configuration of your own."
        )
    if config.kv_prompt.tokens is None:  # of a release that had none
        config.kv_prompt = KVPromptConfig(0)
    if config.state_encoder.layers is None:
        config.state_encoder = StateEncoderConfig([])
    return config


def _is_sealed(folder: Path) -> bool:
    """Whether the model in a folder is of a format that has a seal."""
    return bool(read_json(folder / "config.json").get("format_version", 0) >= _SEALED_FROM)


def _holds_backbone(folder: Path) -> bool:
    """Whether a saved model has its backbone's weights itself, as the formats with a seal may."""
    return _is_sealed(folder) and (folder / BACKBONE / "config.json").is_file()


def _memory_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a saved model that are not its backbone's."""
    files = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        files = set(read_json(folder / INDEX)["weight_map"].values())
    for name in sorted(files):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not key.startswith(f"{BACKBONE}."):
                    yield key, file.get_tensor(key)
