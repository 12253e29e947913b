"""English words by the lists that RULER draws from, those of wonderwords."""

from functools import cache

from hiermem.errors import InputError


@cache
def english(kind: str) -> tuple[str, ...]:
    """All words of a kind, sorted.

    Args:
        kind: noun, adjective or verb.

    Raises:
        InputError: wonderwords is not installed.
    """
    try:
        from wonderwords import RandomWord
    except ImportError as error:
        raise InputError("RULER needs wonderwords: install hiermem with the extra eval.") from error
    return tuple(sorted(RandomWord().filter(include_categories=[kind])))
