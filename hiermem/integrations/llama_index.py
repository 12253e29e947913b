"""A LlamaIndex retriever over a library (extra `llama-index`)."""

from collections.abc import Sequence

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from hiermem.integrations.sources import metadata
from hiermem.library import Library


class LibraryRetriever(BaseRetriever):
    """Passages of a library that fit a question, best first, with document and place as metadata.

    Example:
        >>> retriever = LibraryRetriever(Library.open("papers", model), count=4)
        >>> retriever.retrieve("Who is the captain?")

    Args:
        library: it is searched by one thread at a time.
        count: segments that passages are taken from.
        documents: names of those that are searched; empty: all.
        before: only pages before that one; None: all.
    """

    def __init__(
        self,
        library: Library,
        count: int = 8,
        *,
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> None:
        super().__init__()
        self._library, self._count, self._documents, self._before = library, count, documents, before

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._library.search(
            query_bundle.query_str, self._count, documents=self._documents, before=self._before
        )
        return [
            NodeWithScore(
                node=TextNode(
                    text=source.text,
                    id_=f"{source.document}#{source.start}-{source.end}",
                    metadata=metadata(source),
                ),
                score=source.score,
            )
            for source in found
        ]
