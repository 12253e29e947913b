"""A library as tools of an agent, and as a retriever of LangChain and LlamaIndex: by their own clients."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from readers import reader
from test_places import document

from hiermem import Library
from hiermem.documents import document_of_text

QUESTION = "Where hangs the brass key?"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library.open(tmp_path / "library", reader(), index=True)
    made.add_document(document())
    made.add_document(document_of_text("mill.txt", "The miller is Mary Quill.\n"))
    return made


def test_langchain_gets_passages_with_their_places(library: Library) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.runnables import RunnableLambda

    from hiermem.integrations.langchain import LibraryRetriever

    retriever = LibraryRetriever(library=library, count=3)
    chain = retriever | RunnableLambda(lambda found: [(doc.page_content, doc.metadata) for doc in found])
    (text, facts), *_ = chain.invoke(QUESTION)
    expected = library.search(QUESTION, 3)[0]
    assert text == expected.text and facts["score"] == expected.score
    assert (facts["document"], facts["page"], facts["chapter"]) == ("harbour.pdf", 2, "Fire")
    assert library.text("harbour.pdf")[facts["start"] : facts["end"]] == text
    narrow = LibraryRetriever(library=library, documents=("mill.txt",))
    assert {doc.metadata["document"] for doc in narrow.invoke("Who is the miller?")} == {"mill.txt"}
    assert all(
        doc.metadata["page"] < 2 for doc in LibraryRetriever(library=library, before=2).invoke(QUESTION)
    )
    with pytest.raises(ValueError, match="extra"):
        LibraryRetriever(library=library, number=3)


def test_llama_index_gets_passages_with_their_places(library: Library) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import get_response_synthesizer
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    from hiermem.integrations.llama_index import LibraryRetriever

    retriever = LibraryRetriever(library, count=3)
    best = retriever.retrieve(QUESTION)[0]
    expected = library.search(QUESTION, 3)[0]
    assert (best.text, best.score) == (expected.text, expected.score)
    assert best.metadata["page"] == 2
    synthesizer = get_response_synthesizer(llm=MockLLM())
    response = RetrieverQueryEngine(retriever, synthesizer).query(QUESTION)
    assert response.source_nodes[0].text == expected.text and expected.text.strip() in str(response)


def called(library: Library, files: Path, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Results of an agent's calls, by the client of the official SDK."""
    from mcp import Client

    from hiermem.integrations.mcp import mcp_server

    async def run() -> list[Any]:
        async with Client(mcp_server(lambda: library, files)) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def test_an_agent_adds_asks_searches_lists_and_removes(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    files = tmp_path / "files"
    files.mkdir()
    (files / "ferry.txt").write_text("The ferry to Lundy leaves at seven.", encoding="utf-8")
    ask = ("ask", {"question": "When leaves the ferry to Lundy?"})
    results = called(
        library,
        files,
        ("list", {}),
        ("add", {"path": "ferry.txt"}),
        ask,
        ("add_text", {"name": "note", "text": "The lighthouse keeper is Tom Pound."}),
        ("search", {"query": "lighthouse keeper", "count": 1}),
        ("remove", {"name": "ferry.txt"}),
        ask,
    )
    assert not any(result.is_error for result in results)
    listed, added, asked, noted, found, _, after = [result.structured_content for result in results]
    assert [each["name"] for each in listed["result"]] == ["harbour.pdf", "mill.txt"]
    assert added["result"][0]["outcome"] == "added" and noted["outcome"] == "added"
    assert asked["found"] and asked["sources"][0]["document"] == "ferry.txt"
    assert asked["sources"][0]["text"].strip() == "The ferry to Lundy leaves at seven."
    assert found["result"][0]["document"] == "note"
    assert all(source["document"] != "ferry.txt" for source in after["sources"])


def test_an_agent_reads_no_file_outside_of_its_folder(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (files / "link.txt").symlink_to(tmp_path / "secret.txt")
    (files / ".hidden").write_text("hidden", encoding="utf-8")
    paths = ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt", ".hidden", "a\0b", "missing.txt")
    results = called(library, files, *(("add", {"path": path}) for path in paths))
    assert all(result.is_error for result in results)
    assert [("outside" in str(result.content)) for result in results] == [True] * 5 + [False]
    (bad,) = called(library, files, ("ask", {"question": " "}))
    assert bad.is_error and "The question is empty" in str(bad.content)
    assert len(library) == 2


def test_the_command_serves_an_agent_over_standard_input(tmp_path: Path, wide_model: Path) -> None:
    pytest.importorskip("mcp")
    from mcp import Client, StdioServerParameters, stdio_client

    arguments = ["-m", "hiermem.cli.main", "mcp", str(tmp_path / "library"), "--model", str(wide_model)]
    server = StdioServerParameters(command=sys.executable, args=[*arguments, "--files", str(tmp_path)])

    async def run() -> Any:
        async with Client(stdio_client(server)) as client:
            tools = await client.list_tools()
            await client.call_tool("add_text", {"name": "note", "text": "The keeper is Tom Pound."})
            return tools, await client.call_tool("list", {})

    tools, listed = asyncio.run(run())
    assert {tool.name for tool in tools.tools} == {"ask", "search", "list", "add", "add_text", "remove"}
    assert all(tool.description for tool in tools.tools)
    assert listed.structured_content["result"][0]["name"] == "note"
