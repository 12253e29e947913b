"""Search keys of segments: each one short file; this is the one place that lists them.

`register_search_key` adds one from outside.
"""

from collections.abc import Mapping
from typing import Any

from hiermem.registry import Registry
from hiermem.retrieval.keys.base import Keyed, Question, SearchKey, Text, UnitText
from hiermem.retrieval.keys.dense import DenseKey
from hiermem.retrieval.keys.lexical import LexicalKey, LexicalKeyConfig
from hiermem.retrieval.keys.states import StatesKey
from hiermem.retrieval.keys.trained import TrainedKey

SEARCH_KEYS: Registry[SearchKey] = Registry("search key", SearchKey)
register_search_key = SEARCH_KEYS.register

register_search_key(LexicalKey)
register_search_key(TrainedKey)
register_search_key(DenseKey)
register_search_key(StatesKey)


def new_search_keys(settings: Mapping[str, Mapping[str, Any]], **supplies: Any) -> list[SearchKey]:
    """Keys by name, with their settings.

    Args:
        supplies: what keys that name it among `SearchKey.supplied` get; they are left out where it is None.

    Raises:
        InputError: there is no such key or setting, or a value is refused.
    """
    keys = []
    for name, chosen in settings.items():
        supplied = {field: supplies[field] for field in SEARCH_KEYS[name].supplied}
        if all(supply is not None for supply in supplied.values()):
            keys.append(SEARCH_KEYS.build(name, chosen, **supplied))
    return keys


__all__ = [
    "SEARCH_KEYS",
    "DenseKey",
    "Keyed",
    "LexicalKey",
    "LexicalKeyConfig",
    "Question",
    "SearchKey",
    "StatesKey",
    "Text",
    "TrainedKey",
    "UnitText",
    "new_search_keys",
    "register_search_key",
]
