"""Perplexity over texts of one's own, and over WikiText as it is published (Merity et al., arXiv 1609.07843).

A file is one text: WikiText's articles follow each other in it, each under a line `` = Title = ``, and are
read as one stream, as HMT does with WikiText-103 (arXiv 2405.06067).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.pg19 import PerplexityTask, read_texts

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig

WIKITEXT = {"validation": "valid"}
"""Splits by the names that they have in WikiText's files, where those are others."""


@register
@dataclass(frozen=True, kw_only=True)
class Perplexity(PerplexityTask):
    """Streaming perplexity over any texts: a file, a folder of .txt files, or WikiText.

    A word is what stands between white space. Tables of WikiText often count the ends of lines as words, too.

    Examples:

        hiermem eval perplexity --data texts --policy attention --budget 512

        hiermem eval perplexity --data wikitext-103-raw --split test --max-tokens 32768

        hiermem eval perplexity --data Salesforce/wikitext --subset wikitext-103-raw-v1 --split test
    """

    name = "perplexity"
    title = "Perplexity"

    data: Path = option(help="One text, a folder of texts, or a data set's name on the hub.")
    split: str | None = option(
        None, help="Of a folder with folders train, test, … or WikiText's files wiki.SPLIT.*, or of the hub."
    )
    subset: str | None = option(None, help="Part of a data set on the hub, such as wikitext-103-raw-v1.")
    limit: int | None = option(None, help="Use only so many texts of a folder, the first by name.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset is not None and not hub.is_name(self.data):
            raise InputError(f"{self.data} is no name on the hub: leave --subset out.")
        if hub.is_name(self.data) and self.split is None:
            raise InputError(f"There is no path {self.data}; if it is a name on the hub, give --split.")
        if self.data.is_file() and self.split is not None:
            raise InputError(f"{self.data} is one text: leave --split out.")
        if self.limit is not None and (self.data.is_file() or hub.is_name(self.data)):
            raise InputError(f"{self.data} is read as one text: leave --limit out.")

    def load(self, config: HierMemConfig) -> dict[str, str]:
        """Texts by name."""
        if hub.is_name(self.data):
            return {self.data.name: self._from_hub()}
        return read_texts(self._files()[: self.limit])

    def settings(self, data: dict[str, str], config: HierMemConfig) -> dict[str, Any]:
        return {**super().settings(data, config), "split": self.split, "subset": self.subset}

    def _from_hub(self) -> str:
        """All rows of a split in one text; in WikiText, they are lines of articles."""
        text = "".join(hub.rows(str(self.data), str(self.split), _line, self.subset))
        if not text.strip():
            raise InputError(f"{self.data} ({self.split}) holds no text: give another one.")
        return text

    def _files(self) -> list[Path]:
        """The files of the texts, by name.

        Raises:
            InputError: there is none, or more than one WikiText.
        """
        if self.data.is_file():
            return [self.data]
        if self.split is None:
            files, pattern = sorted(self.data.glob("*.txt")), "*.txt"
        else:
            wiki = f"wiki.{WIKITEXT.get(self.split, self.split)}.*"
            files, pattern = sorted((self.data / self.split).glob("*.txt")), f"{self.split}/*.txt or {wiki}"
            found = sorted(self.data.glob(wiki))
            if len(found) + bool(files) > 1:
                names = ", ".join(str(file.relative_to(self.data)) for file in (*files[:1], *found))
                raise InputError(f"{self.data} holds more than one {self.split} text ({names}): give a file.")
            files = files or found
        if not files:
            raise InputError(f"There is no text {pattern} in {self.data}: give a folder of texts, or a file.")
        return files


def _line(row: dict[str, Any]) -> str:
    """A row as it stands in the text, which begins a new line after it."""
    return row["text"].removesuffix("\n") + "\n"
