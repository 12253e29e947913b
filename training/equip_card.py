"""The card of an equipped model: what was measured on the way, and what is on."""

from typing import Any

from hiermem.card import card
from hiermem.eval.tables import table
from hiermem.training.equip_sizes import LIGHTER
from hiermem.training.validation import ValidationConfig


def card_of(backbone: str, result: dict[str, Any], config: ValidationConfig) -> str:
    """The text of `README.md`.

    Args:
        result: as `hiermem.training.equip.equip` gives it.
        config: of the validation.
    """
    figures = [[name, found["books"], found["codes"]] for name, found in result["figures"].items()]
    stages = [
        [stage["name"], stage["before"], stage["after"], "yes" if stage["kept"] else "no", stage["seconds"]]
        for stage in result["stages"]
    ]
    words = (
        f"Made by `hiermem equip`. Negative log-likelihood in nats a token on validation books of PG-19, "
        f"lower is better: *books*, {config.pieces} pieces of {config.tokens:,} tokens read on; *codes*, "
        f"{config.codes} codes asked for after {config.length:,} tokens of which {config.keep:g} is kept "
        f"(by full attention, all)."
    )
    lines = [card(backbone, whole=False), words, "", *table(["model", "books", "codes"], figures), ""]
    kept = f"one that made it worse was left out (Mamba heads may cost {LIGHTER} nats)"
    lines += [f"Stages, by the mean of both; {kept}:", ""]
    lines += table(["stage", "before", "after", "kept", "seconds"], stages)
    return "\n".join(lines) + "\n"
