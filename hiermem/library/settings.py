"""Settings of a library, which every document in it is read with; fixed when the library is made."""

from dataclasses import dataclass, replace
from typing import Any

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryCorruptError, MemoryIncompatibleError
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.saved import YOUNGER, check_fingerprint, plain_settings
from hiermem.memory.state import MemoryState
from hiermem.memory.stored import MOST, exactly, settings, whole, words
from hiermem.model import HierMemModel
from hiermem.retrieval.keys import SEARCH_KEYS


@dataclass(frozen=True)
class LibrarySettings:
    """Settings of a library.

    Attributes:
        model: name of the model that read the first document; not to be believed.
        fingerprint: facts about that model, by name.
        digests: of the search keys, by name.
        segment: tokens of a segment.
        index: whether documents are only indexed: the backbone reads nothing of them.
        longterm: the search keys and tiers.
    """

    model: str
    fingerprint: dict[str, str]
    digests: dict[str, str]
    segment: int
    index: bool
    longterm: LongTermConfig

    @classmethod
    def of(cls, model: HierMemModel, index: bool | None) -> "LibrarySettings":
        """Those of a new library.

        Args:
            index: whether documents are only indexed; None: they are where that leaves out nothing that
                finds passages or that a tier keeps.
        """
        config = model.longterm_config()
        if index is None:
            index = not (config.has_states or config.tiers or bool(model.config.summary.search))
        empty = model.new_memory(index)
        return cls(
            model.name_or_path,
            empty.fingerprint,
            empty.longterm.digests,
            model.config.segment,
            index,
            model.longterm_config(index),
        )

    def plain(self) -> dict[str, Any]:
        """As plain JSON types."""
        names = ("model", "fingerprint", "digests", "segment", "index")
        return {name: getattr(self, name) for name in names} | {"longterm": plain_settings(self.longterm)}

    @classmethod
    def read(cls, plain: Any, where: object) -> "LibrarySettings":
        """The inverse of `plain`.

        Raises:
            MemoryCorruptError: they are no such settings.
            MemoryIncompatibleError: this version does not know them.
        """
        try:
            names = ("model", "fingerprint", "digests", "segment", "index", "longterm")
            exactly(plain, names, "the settings")
            texts = [*plain["fingerprint"].items(), *plain["digests"].items()]
            hashes = [(words(name, "a name"), words(value, "a hash")) for name, value in texts]
            count = len(plain["fingerprint"])
            if type(plain["index"]) is not bool:
                raise ValueError("index is not a truth value")
            return cls(
                words(plain["model"], "the model's name"),
                dict(hashes[:count]),
                dict(hashes[count:]),
                whole(plain["segment"], "segment", 1, MOST),
                plain["index"],
                settings(LongTermConfig, plain["longterm"], YOUNGER),
            )
        except InputError as error:
            raise MemoryIncompatibleError(f"The library at {where} cannot be used here. {error}") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise MemoryCorruptError(
                f"The catalogue of the library at {where} does not make sense ({error}): restore the library "
                f"from a copy."
            ) from error

    def configured(self, config: HierMemConfig, where: object) -> HierMemConfig:
        """A configuration with the search keys, tiers and segments of this library.

        Raises:
            MemoryIncompatibleError: a search key names files, which are not opened because a library says so.
        """
        keys, own = self.longterm.keys, config.longterm
        for name, key in keys.items():
            if own.keys.get(name) != key and SEARCH_KEYS[name].names_files_with(key):
                raise MemoryIncompatibleError(
                    f"The library at {where} names files for its search key {name}, which are not opened for "
                    f"that alone: load the model with the same LongTermConfig(keys=…)."
                )
        longterm = replace(own, keys=keys, tiers=self.longterm.tiers, lexical=self.longterm.lexical)
        return type(config)(**{**config.settings(), "longterm": longterm, "segment": self.segment})

    def check(self, model: HierMemModel, where: object) -> MemoryState:
        """Refuse a model that cannot add to a library, or ask it; an empty memory of its documents.

        Raises:
            MemoryIncompatibleError: it is another model, or has other settings.
        """
        empty, name = model.new_memory(self.index), f"The library at {where}"
        check_fingerprint(self.fingerprint, empty.fingerprint, name)
        own = model.longterm_config(self.index)
        if (self.longterm.keys, self.longterm.tiers) != (own.keys, own.tiers):
            raise MemoryIncompatibleError(
                f"{name} has other search keys or tiers ({', '.join(self.longterm.keys)}) than the model "
                f"({', '.join(own.keys)}): load the model with those, or make another library."
            )
        if self.segment != model.config.segment or self.longterm.lexical != own.lexical:
            raise MemoryIncompatibleError(
                f"{name} has segments of {self.segment} tokens, or other settings of its lexical key: load "
                f"the model with those, or make another library."
            )
        check_fingerprint(self.digests, empty.longterm.digests, name)
        return empty
