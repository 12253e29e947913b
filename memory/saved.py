"""Settings and facts in the manifest of a saved memory, checked by themselves."""

from dataclasses import asdict, dataclass
from typing import Any

from hiermem.memory.hmt.module import FORMER_NAMES, SummaryConfig
from hiermem.memory.longterm import KEYS, LongTermConfig
from hiermem.memory.stored import MOST, exactly, read_bookkeeping, settings, whole, words
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.keys.lexical import LexicalKeyConfig

YOUNGER: dict[type, dict[str, Any]] = {
    WorkingMemoryConfig: {"head_shares": None, "policy_settings": {}},
    LongTermConfig: {"keys": KEYS, "tiers": {}},
    LexicalKeyConfig: {"version": 1, "grams": 0},
}
"""Settings that came after the first release of the format, and what memories from before were read with."""

WHERE_USED: dict[type, tuple[str, ...]] = {
    WorkingMemoryConfig: ("policy_settings",),
    LongTermConfig: ("keys", "tiers"),
}
"""Of these, the ones that files hold where they are set: others read them as they did before."""


def plain_settings(config: Any) -> dict[str, Any]:
    """Settings of a part as plain JSON types, as files hold them."""
    kind = type(config)
    unused = [name for name in WHERE_USED.get(kind, ()) if getattr(config, name) == YOUNGER[kind][name]]
    former = {now: name for name, now in FORMER_NAMES.items()} if kind is SummaryConfig else {}
    return {former.get(name, name): value for name, value in asdict(config).items() if name not in unused}


@dataclass(frozen=True)
class SavedInfo:
    """The info of a saved memory.

    Attributes:
        fingerprint: as `MemoryState` has it.
        model: as `MemoryState` has it.
        segment: as `MemoryState` has it.
        tokens: how many were read.
        characters: how many were read.
        recurrent: whether segments read the memory embeddings of earlier ones.
        working: settings of the working memory.
        longterm: settings of the long-term memory.
        bookkeeping: as `WorkingMemory.bookkeeping` has it.
        digests: as `LongTermMemory.digests` has them.
    """

    fingerprint: dict[str, str]
    model: str
    segment: int
    tokens: int
    characters: int
    recurrent: bool
    working: WorkingMemoryConfig
    longterm: LongTermConfig
    bookkeeping: dict[str, Any]
    digests: dict[str, str]

    @classmethod
    def read(cls, info: Any) -> "SavedInfo":
        """Read a manifest.

        Raises:
            InputError: settings that this version does not know.
            ValueError: anything else that a memory does not say.
        """
        names = ("fingerprint", "segment", "tokens", "characters", "working", "longterm")
        exactly(info, names, "the manifest", optional=("model", "recurrent"))  # younger than the format
        working = exactly(info["working"], ("config", "bookkeeping"), "the working memory")
        longterm = exactly(info["longterm"], ("config",), "the long-term memory", optional=("digests",))
        bookkeeping = read_bookkeeping(working["bookkeeping"])
        if [whole(info["tokens"], "tokens")] != bookkeeping["seen"]:
            raise ValueError("tokens and seen differ")
        if type(recurrent := info.get("recurrent", False)) is not bool:
            raise ValueError("recurrent is not a truth value")
        return cls(
            _hashes(info["fingerprint"], "the fingerprint"),
            words(info.get("model", ""), "the model's name"),
            whole(info["segment"], "segment", 1, MOST),
            info["tokens"],
            whole(info["characters"], "characters", 0, MOST),
            recurrent,
            settings(WorkingMemoryConfig, working["config"], YOUNGER),
            settings(LongTermConfig, longterm["config"], YOUNGER),
            bookkeeping,
            _hashes(longterm.get("digests", {}), "the digest of a search key"),
        )


def _hashes(values: Any, name: str) -> dict[str, str]:
    """Short texts by name.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is not one")
    return {words(key, name): words(value, name) for key, value in values.items()}
