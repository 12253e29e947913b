"""Models on disk: the memory's parameters, and of the backbone its name, or its weights where they changed.

`model.safetensors` holds, by the names of `HierMemModel.state_dict`, whatever the named backbone does not:
the memory's parameters, adapters, and a backbone that was trained, resized, merged or never had a name. So
transformers' Trainer finds in a checkpoint all that it trained. Adapters stand in PEFT's layout, too.
"""

import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from hiermem import lora
from hiermem.card import base_model, card
from hiermem.config import FORMAT_VERSION, HierMemConfig, check_config
from hiermem.errors import InputError, first_line
from hiermem.eviction_weights import AUTO, NONE, bundled, is_evolved, resolve_eviction_weights
from hiermem.fingerprint import WeightsDigest, is_elsewhere
from hiermem.loading import (
    LoadOptions,
    as_reachable,
    check_reference,
    load_backbone,
    load_tokenizer,
    model_type,
    plainly,
    saved_model,
    saved_on_hub,
)
from hiermem.memory.policies import NammPolicy
from hiermem.model_files import read_json
from hiermem.model_folder import CARD, SEAL, check, finish, replacing
from hiermem.pretrained import HierMemPreTrainedModel
from hiermem.retrieval.files import is_memory

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=HierMemPreTrainedModel)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BACKBONE = "backbone"
"""The folder with the configuration of a backbone that was saved whole, and the prefix of its weights."""

_SAMPLE = "backbone_sample"
"""In `config.json`: values by which a backbone that was saved by its name is known again."""

_SEALED_FROM = 3
"""The first format with a seal."""

_AUTO_MAP = {
    "AutoConfig": "configuration_hiermem.HierMemConfig",
    "AutoModelForCausalLM": "modeling_hiermem.HierMemModel",
}
_FORWARDING = """\"\"\"Needs hiermem: pip install hiermem-torch.\"\"\"

from {module} import {name}

__all__ = ["{name}"]
"""
_REMEDY = "save the model again, or restore it from a copy"


# ---- loading


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
    else:
        model = _from_saved(kind, saved, config, saved_options)
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
    if "device_map" not in options.backbone and "quantization_config" not in options.backbone:
        return model.to(options.place)
    for part in (model.namm, model.mamba, *([model.summary] if model.summary is not None else [])):
        part.to(backbone.device)
    return model


def _from_saved(
    kind: type[_Model], folder: Path, config: HierMemConfig | None, options: LoadOptions
) -> _Model:
    with plainly(f"The model at {folder} is not complete", _REMEDY):
        check(folder)
        saved = _saved_config(folder)
        parameters = dict(_memory_tensors(folder))
        config = saved if config is None else config.with_heads_of(saved)
        if config.evictor == AUTO and is_evolved(parameters):
            config = config.with_network_of(saved)
        elif config.evictor != NONE:  # the network that is saved gives way to the one that is asked for
            parameters = {n: t for n, t in parameters.items() if not n.startswith("namm.")}
        if _holds_backbone(folder):
            backbone_config = AutoConfig.from_pretrained(
                folder / _BACKBONE, trust_remote_code=options.trust_remote_code, local_files_only=True
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


def _say_where_from(model: HierMemPreTrainedModel, folder: Path) -> None:
    """Warn where a folder's word leads to a backbone elsewhere that is not known to be the one it means."""
    name, digest = model.config.backbone, model.loaded_weights
    sample = read_json(folder / "config.json").get(_SAMPLE)
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
    return config


def _is_sealed(folder: Path) -> bool:
    """Whether the model in a folder is of a format that has a seal."""
    return bool(read_json(folder / "config.json").get("format_version", 0) >= _SEALED_FROM)


def _holds_backbone(folder: Path) -> bool:
    """Whether a saved model has its backbone's weights itself, as the formats with a seal may."""
    return _is_sealed(folder) and (folder / _BACKBONE / "config.json").is_file()


def _memory_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a saved model that are not its backbone's."""
    files = {_WEIGHTS}
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        files = set(read_json(folder / _INDEX)["weight_map"].values())
    for name in sorted(files):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not key.startswith(f"{_BACKBONE}."):
                    yield key, file.get_tensor(key)


# ---- the memory's parameters


def memory_parameters(model: HierMemPreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in ``state`` that are hiermem's own and in use, by name, contiguous and on the CPU."""
    others = (f"{_BACKBONE}.", *_switched_off(model))
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith(others)}


def load_memory_parameters(model: HierMemPreTrainedModel, parameters: Mapping[str, Tensor]) -> None:
    """Take over parameters from `memory_parameters`; see there."""
    off = _switched_off(model)
    parameters = {name: t for name, t in parameters.items() if not name.startswith(off)}
    expected = memory_parameters(model, model.state_dict())
    wrong = set(expected) ^ set(parameters)
    wrong |= {
        name for name in expected.keys() & parameters.keys() if expected[name].shape != parameters[name].shape
    }
    later = ("summary.search_", "namm.")
    wrong -= {name for name in wrong if name.startswith(later) and name not in parameters}
    if wrong:
        raise InputError(
            f"The saved memory parameters do not fit this configuration ({', '.join(sorted(wrong))} "
            f"differ): leave the configuration out, or take the one that was saved."
        )
    for name, tensor in parameters.items():
        if expected[name].is_floating_point() != tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"The saved memory parameter {name} holds no finite numbers: {_REMEDY}.")
    model.load_state_dict(dict(parameters), strict=False)


def _switched_off(model: HierMemPreTrainedModel) -> tuple[str, ...]:
    """Beginnings of the names of parameters that the model's configuration does not use."""
    network: dict[str, Tensor] = {f"namm.{name}": weight for name, weight in model.namm.named_parameters()}
    used = {
        "summary.": model.summary is not None,
        "mamba.": bool(model.mamba.groups),
        "namm.": model.config.working.policy == NammPolicy.name or is_evolved(network),
    }
    return tuple(name for name, is_used in used.items() if not is_used)


# ---- saving


@dataclass(frozen=True)
class PushOptions:
    """Where a saved model is uploaded to, as transformers' `push_to_hub` calls it."""

    repo_id: str | None = None
    token: str | bool | None = None
    private: bool | None = None
    revision: str | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    create_pr: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "PushOptions":
        """The options of a call, by their names.

        Raises:
            InputError: one is unknown.
        """
        for unknown in arguments.keys() - {option.name for option in fields(cls)}:
            raise InputError(f"save_pretrained() has no option {unknown!r}: leave it out.")
        return cls(**arguments)


@dataclass(frozen=True)
class _Parts:
    """Content of a saved model.

    Attributes:
        tensors: of `model.safetensors`, by name.
        whole: whether the backbone's weights are among them.
        backbone: the backbone's state dict, adapters included.
    """

    tensors: dict[str, Tensor]
    whole: bool
    backbone: dict[str, Tensor] = field(repr=False)


def save(
    model: HierMemPreTrainedModel,
    save_directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None,
    max_shard_size: int | str,
) -> None:
    """Write a model's folder anew, old or new as a whole; see `HierMemModel.save_pretrained`."""
    folder = Path(save_directory)
    check_target(folder)
    parts = _parts(model, model.state_dict() if state_dict is None else state_dict)
    with replacing(folder) as staging:
        _write_config(model, staging)
        _write_tensors(parts.tensors, staging, max_shard_size)
        if parts.whole:
            model.backbone.config.save_pretrained(staging / _BACKBONE)
        if lora.has_lora(model.backbone):
            named = base_model(model.config.backbone)
            lora.save_adapters(model.backbone, staging, parts.backbone, named)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(staging)
        if model.generation_config is not None:
            _write_generation_config(model.generation_config, staging)
        (staging / CARD).write_text(card(model.config.backbone, parts.whole), "utf-8")
    model.name_or_path = str(folder.resolve())


def push(folder: str | os.PathLike[str], options: PushOptions) -> str:
    """Upload what `save` wrote to the hub, and nothing else that is in ``folder``; where to, as a URL."""
    from huggingface_hub import HfApi

    name = options.repo_id or Path(folder).resolve().name
    api = HfApi(token=options.token)
    repo = api.create_repo(name, private=options.private, exist_ok=True).repo_id
    files = [SEAL, *json.loads((Path(folder) / SEAL).read_text("utf-8"))["files"]]
    done = api.upload_folder(
        repo_id=repo,
        folder_path=Path(folder),
        allow_patterns=files,
        revision=options.revision,
        commit_message=options.commit_message or "Upload model",
        commit_description=options.commit_description,
        create_pr=options.create_pr,
    )
    return str(done.commit_url)


def save_and_push(
    model: HierMemPreTrainedModel, repo_id: str, max_shard_size: int | str, arguments: Any
) -> str:
    """Upload a model without keeping a copy; see `HierMemModel.push_to_hub`."""
    options = PushOptions.of({"repo_id": repo_id, **arguments})
    before = model.name_or_path
    with TemporaryDirectory() as folder:
        save(model, folder, None, max_shard_size)
        model.name_or_path = before
        return push(folder, options)


def check_target(folder: Path) -> None:
    """Refuse a folder with another model, which would be overwritten, or with a memory.

    Raises:
        InputError: so it is.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder.")
    if is_memory(folder):
        raise InputError(f"{folder} holds the memory of a document: give a folder of its own.")
    finish(folder)
    if (folder / SEAL).is_file():
        return
    foreign = InputError(f"{folder} holds another model, maybe the backbone: give a folder of its own.")
    if (folder / "config.json").exists():
        if model_type(folder) != HierMemConfig.model_type:
            raise foreign
    elif (folder / _WEIGHTS).exists() or (folder / _INDEX).exists():
        raise foreign


def _parts(model: HierMemPreTrainedModel, state: Mapping[str, Tensor]) -> _Parts:
    prefix = f"{_BACKBONE}."
    backbone = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    weights, adapters = lora.split(model.backbone, backbone)
    loaded = model.loaded_weights
    whole = loaded is None or loaded.changed(weights)
    tensors = memory_parameters(model, state)
    tensors |= {prefix + name: tensor.detach() for name, tensor in adapters.items()}
    if whole:
        _check_whole(model.backbone, weights)
        tensors |= {prefix + name: t.detach() for name, t in _untied(model.backbone, weights).items()}
    return _Parts(tensors, whole, backbone)


def _check_whole(backbone: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Refuse to save a changed backbone that is not all here, or not in numbers that can be saved."""
    if not weights or any(is_elsewhere(tensor) for tensor in weights.values()):
        raise InputError(
            "The backbone was changed and its weights are not all here: gather them, or give state_dict."
        )
    if getattr(backbone, "is_quantized", False):
        raise InputError(
            "The backbone is quantised and is not what its name stands for: add adapters to it, or load it "
            "without quantization_config before it is changed."
        )
    with torch.device("meta"):
        fresh = type(backbone)(copy.deepcopy(backbone.config)).state_dict()
    wrong = sorted(weights.keys() ^ fresh.keys())
    wrong += sorted(
        name for name in weights.keys() & fresh.keys() if weights[name].shape != fresh[name].shape
    )
    if wrong:
        raise InputError(
            f"The backbone is not what its configuration makes ({', '.join(wrong[:3])} differ), and could "
            f"not be loaded again: merge what a PeftModel added, or add it as an adapter of the model."
        )


def _untied(backbone: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without second names of the same ones, which loading ties again."""
    tied = getattr(backbone, "all_tied_weights_keys", None) or {}
    repeated = {
        name for name, first in tied.items() if name in weights and _same(weights[name], weights.get(first))
    }
    return {name: tensor for name, tensor in weights.items() if name not in repeated}


def _same(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and first.data_ptr() == second.data_ptr() and first.shape == second.shape


def _write_config(model: HierMemPreTrainedModel, staging: Path) -> None:
    values = {
        **model.config.to_dict(),
        "architectures": [_AUTO_MAP["AutoModelForCausalLM"].partition(".")[2]],
        "auto_map": _AUTO_MAP,
        "format_version": max(FORMAT_VERSION, model.config.format_version),
    }
    if model.loaded_weights is not None:
        values[_SAMPLE] = model.loaded_weights.sample
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (staging / "config.json").write_text(text, "utf-8")
    for reference, module in zip(_AUTO_MAP.values(), ("hiermem.config", "hiermem.model"), strict=True):
        file, _, name = reference.partition(".")
        (staging / f"{file}.py").write_text(_FORWARDING.format(module=module, name=name), "utf-8")


def _write_tensors(tensors: dict[str, Tensor], staging: Path, max_shard_size: int | str) -> None:
    from huggingface_hub import save_torch_state_dict

    if not tensors:  # of which it would write nothing
        save_file({}, staging / _WEIGHTS, metadata={"format": "pt"})
        return
    save_torch_state_dict(
        {name: _own_storage(tensor.cpu()) for name, tensor in tensors.items()},
        staging,
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )


def _own_storage(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: DeepSpeed keeps many in one, which safetensors takes for ties."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_generation_config(config: GenerationConfig, staging: Path) -> None:
    try:
        config.save_pretrained(staging)
    except ValueError as error:
        raise InputError(f"The generation config cannot be saved ({first_line(error)}): mend it.") from error
