"""The configuration of a whole model, and its presets: named functions that return a full one."""

import os
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import field, fields, replace
from inspect import get_annotations
from typing import Any, ClassVar, get_origin

from transformers import AutoConfig, PreTrainedConfig

from hiermem.asking_config import AskConfig
from hiermem.errors import InputError
from hiermem.eviction_weights import AUTO, NONE, SHIPPED, EvictionWeights
from hiermem.memory.hmt.module import FORMER_NAMES, SummaryConfig
from hiermem.memory.kv.prompt import KVPromptConfig
from hiermem.memory.longterm import KEYS, LongTermConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.policies import (
    POLICIES,
    FullCachePolicy,
    LinearPolicy,
    NammConfig,
    NammPolicy,
    SegmentLocalPolicy,
)
from hiermem.memory.saved import plain_settings
from hiermem.memory.state_encoder import StateEncoderConfig
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.encoder import has_minilm
from hiermem.retrieval.keys import DenseKey, StatesKey
from hiermem.settings import check_settings

FORMAT_VERSION = 4
"""1: Mamba heads without local attention. 2: the backbone by name alone, no seal. 3: the lexical key of 2,048
numbers, without n-grams."""

OF_BACKBONE = frozenset(
    {
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "tie_word_embeddings",
        "use_cache",
        "vocab_size",
    }
)
"""Attributes that a configuration takes from the backbone's; not the longest input, as there is none."""

_PARTS: dict[str, type] = {
    "working": WorkingMemoryConfig,
    "longterm": LongTermConfig,
    "asking": AskConfig,
    "namm": NammConfig,
    "summary": SummaryConfig,
    "mamba": MambaConfig,
    "kv_prompt": KVPromptConfig,
    "state_encoder": StateEncoderConfig,
}


_OF_TRANSFORMERS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}
"""Arguments of a transformers configuration beside its fields."""


class HierMemConfig(PreTrainedConfig):
    """Configuration of `HierMemModel`; each part's settings are documented beside that part.

    Attributes:
        backbone: hub id, folder or GGUF file of the backbone, or the name of a bundled model.
        backbone_revision: commit or tag of the backbone on the hub.
        format_version: layout of a saved model.
        segment: tokens that leave one record in the long-term memory.
        chunk: tokens that go through the backbone at once; divides `segment`.
        working: settings of the working memory.
        longterm: settings of the long-term memory.
        asking: settings of an answer.
        namm: settings of the network behind the policy `namm`.
        summary: settings of the memory embeddings; by default those of the saved model.
        mamba: which heads Mamba heads replace, and their settings; by default those of the saved model.
        kv_prompt: settings of the trained prompt in front of recalled keys and values; by default that of the
            saved model, or what ships for the backbone.
        state_encoder: settings of the sentence embeddings made of the backbone's states, for the search key
            `states`; by default those of the saved model, or what ships for the backbone.
        evictor: where head shares and that network's parameters come from (see
            `hiermem.eviction_weights`): `auto` takes what ships for the backbone where the policy is `namm`
            or `linear`; `shipped`, of the preset `full`, head shares where it is `attention`, too; `none`; a
            folder. A model that is loaded has taken it over and says `none`, or `auto`.
    """

    model_type = "hiermem"

    backbone: str = ""
    backbone_revision: str | None = None
    format_version: int = FORMAT_VERSION
    segment: int = 512
    chunk: int = 512
    working: WorkingMemoryConfig = field(default_factory=WorkingMemoryConfig)
    longterm: LongTermConfig = field(default_factory=LongTermConfig)
    asking: AskConfig = field(default_factory=AskConfig)
    namm: NammConfig = field(default_factory=NammConfig)
    summary: SummaryConfig = field(default_factory=SummaryConfig)
    mamba: MambaConfig = field(default_factory=MambaConfig)
    kv_prompt: KVPromptConfig = field(default_factory=KVPromptConfig)
    state_encoder: StateEncoderConfig = field(default_factory=StateEncoderConfig)
    evictor: str = AUTO

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]

    def show(self, backbone: PreTrainedConfig) -> None:
        """Let what transformers asks of a model's configuration be the backbone's, also once that changes."""
        for name in OF_BACKBONE:
            self.__dict__.pop(name, None)
        self.__dict__["_backbone"] = backbone

    def __getattr__(self, name: str) -> Any:
        backbone = self.__dict__.get("_backbone")
        if backbone is None or name not in OF_BACKBONE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        backbone = self.__dict__.get("_backbone")
        if backbone is None or name not in OF_BACKBONE:
            super().__setattr__(name, value)
        else:
            setattr(backbone, name, value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's, where there is one."""
        return self.__dict__.get("_backbone") or super().get_text_config(decoder, encoder)

    def __post_init__(self, **kwargs: Any) -> None:
        if "model_type" not in kwargs:  # a file may hold what others noted there
            _check_names(kwargs)
        check_settings(self, {"format_version": int})
        if self.format_version < 2 and isinstance(self.mamba, dict):
            self.mamba = MambaConfig(**{"window": 0, **self.mamba})
        if self.format_version < 4:
            self.longterm = _before_n_grams(self.longterm)
        self.format_version = FORMAT_VERSION
        self.summary = _in_present_names(self.summary)
        check_settings(self, {name: kind for name, kind in _OWN.items() if get_origin(kind) is not ClassVar})
        if self.chunk < 1 or self.segment < 1 or self.segment % self.chunk:
            raise InputError(
                f"The segment must be a multiple of the chunk, not a segment of {self.segment} "
                f"with a chunk of {self.chunk} tokens."
            )
        if self.summary.tokens and self.summary.query == "half":
            alone = self.working.policy == SegmentLocalPolicy.name and self.chunk == self.segment
            if not alone or self.working.update_interval != self.segment:
                raise InputError(
                    f"The query half reads segments one by one: set the policy {SegmentLocalPolicy.name}, "
                    f"and chunk and update_interval to the segment."
                )
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON types."""
        settings = {**super().to_dict(), **{name: plain_settings(getattr(self, name)) for name in _PARTS}}
        return {name: value for name, value in settings.items() if name != "_backbone"}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "HierMemConfig":
        """A named configuration, with ``changes`` to its top-level settings.

        Raises:
            InputError: there is no preset or no setting of that name.
        """
        if name not in PRESETS:
            raise InputError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
        settings = PRESETS[name]().settings()
        for unknown in set(changes) - set(settings):
            raise InputError(
                f"There is no top-level setting {unknown!r}: choose one of {', '.join(settings)}; "
                f"with_working() changes the working memory."
            )
        return cls(**{**settings, **changes})

    @classmethod
    def from_saved(cls, folder: str | os.PathLike[str]) -> "HierMemConfig":
        """The configuration of a model that `HierMemModel.save_pretrained` wrote.

        Raises:
            InputError: it is damaged, or in a newer format.
        """
        try:
            values, _ = cls.get_config_dict(folder)
            version = values.get("format_version", 0)
            if version > FORMAT_VERSION:
                raise InputError(
                    f"The model at {folder} is in format {version} and this version reads up to "
                    f"{FORMAT_VERSION}: upgrade hiermem."
                )
            return cls.from_dict(values)
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The configuration at {folder} cannot be read: {error}.") from error

    def settings(self) -> dict[str, Any]:
        """The settings that are hiermem's own, as the constructor takes them."""
        names = ("backbone", "backbone_revision", "segment", "chunk", *_PARTS, "evictor")
        return {name: getattr(self, name) for name in names}

    def with_working(self, **changes: Any) -> "HierMemConfig":
        """The same configuration with other settings of the working memory.

        With another policy, settings of the present one go.
        """
        policy = changes.pop("policy", self.working.policy)
        working = self.working
        if POLICIES.canonical(policy) != working.policy:
            working = working.with_policy(policy)
        working = replace(working, **changes)
        return type(self)(**{**self.settings(), "working": working})

    def with_evictor(self, evictor: EvictionWeights) -> "HierMemConfig":
        """The same configuration with an evictor's head shares, where it has none, and network settings."""
        shares = evictor.shares if self.working.head_shares is None else self.working.head_shares
        changes = {"working": replace(self.working, head_shares=shares), "evictor": NONE}
        changes |= {"namm": evictor.namm} if evictor.network is not None else {}
        return type(self)(**{**self.settings(), **changes})

    def with_parts_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with the parts of a saved model that it says nothing of.

        Raises:
            InputError: see `with_heads_of`.
        """
        config = self.with_heads_of(saved).with_kv_prompt_of(saved).with_state_encoder_of(saved)
        return config.with_summary_of(saved).with_shares_of(saved)

    def with_heads_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with the Mamba heads of a saved model, unless it says which.

        Raises:
            InputError: they are those of the saved model, but to attend to other tokens.
        """
        mamba, trained = self.mamba, saved.mamba
        same = mamba.groups == trained.groups or (mamba.groups is None and mamba != MambaConfig())
        if trained.groups and same and (mamba.window, mamba.sinks) != (trained.window, trained.sinks):
            raise InputError(
                f"The model's Mamba heads attend to {trained.window} last and {trained.sinks} first tokens, "
                f"not at {mamba.window} and {mamba.sinks}: leave their settings out."
            )
        if mamba.groups is not None:
            return self
        return type(self)(**{**self.settings(), "mamba": saved.mamba})

    def with_kv_prompt_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with a saved model's prompt of keys and values, unless it says which."""
        if self.kv_prompt.tokens is not None:
            return self
        return type(self)(**{**self.settings(), "kv_prompt": saved.kv_prompt})

    def with_state_encoder_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with a saved model's state encoder, unless it says which."""
        if self.state_encoder.layers is not None:
            return self
        return type(self)(**{**self.settings(), "state_encoder": saved.state_encoder})

    def with_summary_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with a saved model's memory embeddings, unless it says which."""
        if self.summary != SummaryConfig():
            return self
        return type(self)(**{**self.settings(), "summary": saved.summary})

    def with_shares_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with a saved model's head shares in the place of those that ship, where it
        keeps tokens by the same policy."""
        if self.evictor != SHIPPED:
            return self
        shares = self.working.head_shares
        if shares is None and self.working.policy == saved.working.policy:
            shares = saved.working.head_shares
        working = replace(self.working, head_shares=shares)
        return type(self)(**{**self.settings(), "working": working, "evictor": AUTO})

    def without_shipped(self) -> "HierMemConfig":
        """The same configuration, but for head shares that would be what ships."""
        evictor = AUTO if self.evictor == SHIPPED else self.evictor
        return type(self)(**{**self.settings(), "evictor": evictor})

    def with_network_of(self, saved: "HierMemConfig") -> "HierMemConfig":
        """The same configuration with the settings of a saved model's own network, and its head shares where
        there are none, for a policy that scores with a network."""
        if self.working.policy not in (NammPolicy.name, LinearPolicy.name):
            return self
        weights = EvictionWeights(saved.working.head_shares, None, saved.namm)
        return type(self)(**{**self.with_evictor(weights).settings(), "namm": saved.namm})

    def with_asking(self, **changes: Any) -> "HierMemConfig":
        """The same configuration with other settings of an answer."""
        return type(self)(**{**self.settings(), "asking": replace(self.asking, **changes)})


_OWN = get_annotations(HierMemConfig)


def _in_present_names(summary: Any) -> Any:
    """Settings of memory embeddings as a file holds them, by the names that they have now."""
    if not isinstance(summary, dict):
        return summary
    return {FORMER_NAMES.get(name, name): value for name, value in summary.items()}


def _before_n_grams(longterm: Any) -> Any:
    """Settings of the long-term memory as a file of an earlier format holds them, or none, with the lexical
    key that was the default then."""
    given = longterm if isinstance(longterm, dict) else {}
    return {**given, "lexical": {"dim": 2048, "grams": 0, **given.get("lexical", {})}}


def _check_names(unknown: Iterable[str]) -> None:
    """Refuse settings that nothing would use.

    Raises:
        InputError: there is no such setting, or it belongs to a part.
    """
    for name in unknown:
        if name in _OF_TRANSFORMERS or name.startswith("_"):
            continue
        for part, kind in _PARTS.items():
            if name in {field.name for field in fields(kind)}:
                raise InputError(
                    f"{name!r} is a setting of the part {part}: give {part}={kind.__name__}({name}=…)."
                )
        settings = HierMemConfig().settings()
        raise InputError(f"There is no setting {name!r}: choose one of {', '.join(settings)}.")


def check_config(config: Any) -> None:
    """Refuse what is no configuration.

    Raises:
        InputError: so it is.
    """
    if isinstance(config, str) and config in PRESETS:
        raise InputError(f"config={config!r} names a preset: give HierMemConfig.preset({config!r}).")
    if not isinstance(config, HierMemConfig):
        described = repr(config) if isinstance(config, str) else type(config).__name__
        raise InputError(f"A configuration is a HierMemConfig, such as a preset, not {described}.")


def full() -> HierMemConfig:
    """Working memory pruned by received attention, by head shares where some ship for the backbone, and
    long-term recall by words and by meaning: of the extra `dense` where it is installed, else of the
    backbone's states where there is an encoder for them."""
    keys = {**KEYS, DenseKey.name if has_minilm() else StatesKey.name: {}}
    longterm = LongTermConfig(keys=deepcopy(keys))
    working = WorkingMemoryConfig(policy="attention")
    return HierMemConfig(working=working, longterm=longterm, evictor=SHIPPED)


def streaming() -> HierMemConfig:
    """Sinks and a sliding window, positions without gaps, no recall (StreamingLLM, arXiv 2309.17453)."""
    working = WorkingMemoryConfig(policy="window", positions="compact")
    return HierMemConfig(working=working, longterm=LongTermConfig(top_k=0), summary=SummaryConfig(0))


def namm() -> HierMemConfig:
    """NAMM as published (arXiv 2410.13166), with a network of its own still to be evolved: positions count on
    for ever, what scores below 0 goes, at most 1,024 tokens stay, no recall."""
    working = WorkingMemoryConfig(policy="namm", budget=1024, sinks=0, recent_share=0.0, positions="absolute")
    longterm, summary = LongTermConfig(top_k=0), SummaryConfig(0)
    return HierMemConfig(working=working, longterm=longterm, summary=summary, evictor=NONE)


def hmt() -> HierMemConfig:
    """HMT as published (arXiv 2405.06067), its memory still to be trained: segments of 1,024 tokens over no
    cache, each with its memory prompt and the last 32 tokens of the one before, recall of the last 300."""
    working = WorkingMemoryConfig(
        policy=SegmentLocalPolicy.name, sinks=0, recent_share=0.0, update_interval=1024, positions="compact"
    )
    summary = SummaryConfig(
        tokens=1, sensory=32, width=1536, last=300, query="half", residual=False, init_text=""
    )
    longterm = LongTermConfig(top_k=0)
    return HierMemConfig(segment=1024, chunk=1024, working=working, longterm=longterm, summary=summary)


def bare() -> HierMemConfig:
    """Every tier off: the backbone, exactly, with its full cache."""
    working = WorkingMemoryConfig(policy=FullCachePolicy.name, positions="absolute")
    longterm, summary, mamba = LongTermConfig(top_k=0), SummaryConfig(0), MambaConfig(groups=[])
    return HierMemConfig(working=working, longterm=longterm, summary=summary, mamba=mamba)


PRESETS: dict[str, Callable[[], HierMemConfig]] = {
    "full": full,
    "streaming": streaming,
    "namm": namm,
    "hmt": hmt,
    "bare": bare,
}

AutoConfig.register(HierMemConfig.model_type, HierMemConfig)
