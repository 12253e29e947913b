"""A LangChain retriever over a library (extra `langchain`)."""

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from hiermem.integrations.sources import metadata
from hiermem.library import Library


class LibraryRetriever(BaseRetriever):
    """Passages of a library that fit a question, best first, with document and place as metadata.

    Example:
        >>> retriever = LibraryRetriever(library=Library.open("papers", model), count=4)
        >>> retriever.invoke("Who is the captain?")

    Attributes:
        library: it is searched by one thread at a time.
        count: segments that passages are taken from.
        documents: names of those that are searched; empty: all.
        before: only pages before that one; None: all.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    library: Library
    count: int = Field(default=8, ge=1)
    documents: tuple[str, ...] = ()
    before: int | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.library.search(query, self.count, documents=self.documents, before=self.before)
        return [Document(page_content=source.text, metadata=metadata(source)) for source in found]
