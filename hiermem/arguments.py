"""Checks of the arguments of `HierMemModel.forward` and `generate`: each is obeyed, or refused by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from hiermem.cache import CACHE_NAMES, BackboneCache
from hiermem.errors import InputError

_OWN_DRAFTS = ("assistant_early_exit", "use_mtp")


def checked_input(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    logits_to_keep: int = 0,
    others: Mapping[str, Any] | None = None,
) -> Tensor:
    """The input, unless it is no batch of tokens or the rest does not fit it.

    Args:
        others: arguments that there are not.

    Raises:
        InputError: says which.
    """
    refuse_others(others or {})
    if input_ids is None or input_ids.ndim != 2:
        raise InputError("input_ids are token ids of shape [rows, tokens]: give them so.")
    B, N = input_ids.shape
    if N == 0:
        raise InputError("The input must have at least one token.")
    if attention_mask is not None and not (
        attention_mask.ndim == 2 and attention_mask.shape[0] == B and attention_mask.shape[1] >= N
    ):
        raise InputError(
            f"The mask must have {B} rows and as many columns as the input, {N}, or as it and what was read "
            f"before, not the shape {list(attention_mask.shape)}."
        )
    if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
        raise InputError("logits_to_keep is the number of last positions that get logits.")
    return input_ids


def refuse_others(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that ask for something there is not.

    Raises:
        InputError: one of them is neither None nor an output switched off.
    """
    for name, value in arguments.items():
        if value is None or (value is False and name.startswith("output_")):
            continue
        if name == "inputs_embeds":
            raise InputError("HierMemModel reads token ids, not inputs_embeds: give input_ids.")
        raise InputError(f"HierMemModel.forward() does not know {name}: leave it out.")


def cache_of(arguments: Mapping[str, Any]) -> BackboneCache | None:
    """The cache among the arguments, under either of its names.

    Raises:
        InputError: there are two, or it is not one of hiermem's.
    """
    caches = [arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(caches) > 1:
        raise InputError(f"{' and '.join(CACHE_NAMES)} are two names of one cache: give one of them.")
    if caches and not isinstance(caches[0], BackboneCache):
        raise InputError(
            f"A {type(caches[0]).__name__} holds no working memory: give the cache of an output of "
            f"HierMemModel, or none."
        )
    return caches[0] if caches else None


def generation_setting(
    arguments: Mapping[str, Any], config: GenerationConfig | None, default: GenerationConfig, name: str
) -> Any:
    """A setting of generation: from the call, from the configuration given to it, or else the model's."""
    values = (arguments.get(name), getattr(config, name, None), getattr(default, name, None))
    return next((value for value in values if value is not None), None)


def is_assisted(
    arguments: Mapping[str, Any], config: GenerationConfig | None, default: GenerationConfig
) -> bool:
    """Whether drafts are to be verified, which takes tokens back: of the prompt, or of another model."""
    lookup = generation_setting(arguments, config, default, "prompt_lookup_num_tokens")
    return bool(lookup) or arguments.get("assistant_model") is not None


def check_generation(
    arguments: Mapping[str, Any], config: GenerationConfig | None, default: GenerationConfig
) -> None:
    """Refuse what `generate` cannot do over a working memory.

    Args:
        arguments: of the call.
        config: of generation, given to the call; None: none.
        default: the model's own.

    Raises:
        InputError: names it.
    """

    def setting(name: str) -> Any:
        return generation_setting(arguments, config, default, name)

    if arguments.get("inputs_embeds") is not None:
        refuse_others({"inputs_embeds": arguments["inputs_embeds"]})
    if any(setting(name) not in (None, False) for name in _OWN_DRAFTS):
        raise InputError(
            "Drafts come from the prompt or an assistant_model, not from layers of this model: leave it out."
        )
    mask = arguments.get("attention_mask")
    if mask is not None and not mask.all() and is_assisted(arguments, config, default):
        raise InputError("Drafts go with one prompt without padding: leave the padding out.")
    if (kind := setting("cache_implementation")) is not None:
        raise InputError(
            f"HierMemModel keeps its own memory in place of a cache_implementation ({kind!r}): leave it out."
        )
    if setting("use_cache") is False and cache_of(arguments) is not None:
        raise InputError("Without use_cache nothing can go on from a cache: leave one of them out.")
