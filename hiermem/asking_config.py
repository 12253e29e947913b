"""Settings of an answer. Imports nothing heavy."""

from dataclasses import dataclass

from hiermem.errors import InputError
from hiermem.settings import check_settings

PASSAGE_FORMS = ("text", "kv")
"""Forms that passages may stand before a question in."""


@dataclass
class AskConfig:
    """Settings of an answer.

    Attributes:
        passage_characters: length of all passages together, whole sentences and rows of the recalled
            segments: a small model answers better from less text. 0 takes the whole segments.
        least_score: sentences and rows below this share of the best one's score are left out.
        least_confidence: with search keys of units, a document of which it is less likely that it holds an
            answer is said not to. The default refuses less than a tenth of the questions that a document does
            answer (validation). 0 always answers, whatever the keys.
        instruction: what follows the question; nothing where there are no passages.
        working: whether the working memory stands before the passages too; segments that it still holds
            are then not recalled. It always stands in where nothing is recalled.
        passages: one of `PASSAGE_FORMS`. `text` is read again, tokenised anew. `kv` puts the keys and values
            there that the tier `kv` keeps of it: then only the question is read and, where the model has no
            trained prompt (`hiermem.memory.kv.prompt`), the prompt's beginning. Passages of the segment that
            is not complete yet stand behind these as text.
        rerank: how many of the best segments, more than `top_k`, are ranked again where scores are close: by
            the likelihood of the question after each. The `top_k` best of them are recalled. 0: none.
        margin: scores are close where the last segment that would be recalled leads the next by less than
            this share of its own score.
    """

    passage_characters: int = 600
    least_score: float = 0.7
    least_confidence: float = 0.27
    instruction: str = "Answer from the passages."
    working: bool = False
    passages: str = "text"
    rerank: int = 0
    margin: float = 0.3

    def __post_init__(self) -> None:
        check_settings(self)
        if self.passage_characters < 0:
            raise InputError(f"passage_characters must not be negative, not {self.passage_characters}.")
        if not 0 <= self.least_score <= 1:
            raise InputError(f"least_score must be between 0 and 1, not {self.least_score}.")
        if not 0 <= self.least_confidence <= 1:
            raise InputError(f"least_confidence must be between 0 and 1, not {self.least_confidence}.")
        self.check_passages()
        if self.rerank < 0 or self.rerank == 1:
            raise InputError(f"rerank must be 0 or at least 2, not {self.rerank}.")
        if self.margin < 0:
            raise InputError(f"margin must not be negative, not {self.margin}.")

    def check_passages(self) -> None:
        """Refuse forms of passages that are none, or do not go with the working memory.

        Raises:
            InputError: so it is.
        """
        if self.passages not in PASSAGE_FORMS:
            raise InputError(
                f"Passages stand before a question as one of {', '.join(PASSAGE_FORMS)}, not "
                f"{self.passages!r}: set asking.passages to one of these."
            )
        if self.working and self.passages == "kv":
            raise InputError(
                "Behind the working memory passages stand as text: leave asking.working or asking.passages "
                "out."
            )
