"""Output of `hiermem inspect`: the counts, the page as harmless HTML, the command, and a real browser."""

import dataclasses
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused, run
from readers import reader, settings, text_of, uneven

from hiermem.errors import InputError
from hiermem.eval.inspection import BEGINS, Inspection, inspect, page
from hiermem.model import HierMemModel

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = (
    "\r\n\n Hello <script>alert(1)</script> & \"all\" 'of' you </script> <!-- <script> --> &amp; &lt; "
    "$data ${name}"
    "<img src=x onerror=alert(2)> </div></title>\0 naïve 東京 🚢\u2028end \\u003c\n\n"
)


class Parsed(HTMLParser):
    """The elements of a page, and its text without scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.pieces: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """All that a reader sees."""
        return "".join(self.pieces)


def model_with(policy: str, shares: bool) -> HierMemModel:
    """A tiny reader whose heads keep the same, or different, numbers of tokens."""
    model = reader(config=settings(policy=policy))
    if shares:
        config = settings(policy=policy, head_shares=uneven(model))
        model = HierMemModel(config, model.backbone, model.tokenizer).eval()
    return model


def read_whole(model: HierMemModel, text: str) -> Any:
    """The working memory after the whole text, read in one call, after a last eviction."""
    memory = model.new_working_memory(model.config.working)
    ids = model.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        model.read_ids(memory, ids)
    memory.evict()
    return memory


def made(name: str = "text", text: str = HOSTILE) -> Inspection:
    """Tokens of a text that a tiny reader keeps."""
    return inspect(model_with("keen", False), text, name=name, progress=False)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("policy", ["keen", "lively", "window", "none"])
def test_counts_are_what_the_memory_holds(policy: str, shares: bool) -> None:
    model, text = model_with(policy, shares), text_of(60)
    seen, memory = inspect(model, text, progress=False), read_whole(model, text)
    n = memory.num_tokens[0]
    assert n % model.config.chunk  # the reading ends within an interval, where settling decides
    expected = [[0] * n for _ in memory.geometries]
    for part, cache in zip(memory.cache.head_groups, memory.caches, strict=True):
        for head in cache.positions[0].tolist():
            for position in head:
                if position >= 0:
                    expected[part.layer][position] += 1
    assert seen.counts == expected
    assert seen.heads == [shape.heads for shape in memory.geometries]
    assert seen.sizes[-1] == (n, memory.cache.mean_tokens, memory.nbytes)
    assert sum(map(sum, seen.counts)) == pytest.approx(seen.sizes[-1].tokens * sum(seen.heads))


def test_sizes_follow_the_chunks() -> None:
    model = model_with("window", False)
    seen = inspect(model, text_of(60), progress=False)
    chunk, n = model.config.chunk, len(seen.tokens)
    assert [size.read for size in seen.sizes] == [*range(chunk, n, chunk), n, n]
    assert seen.sizes[-2].tokens > seen.sizes[-1].tokens == model.config.working.budget
    assert all(size.bytes > 0 for size in seen.sizes)


@pytest.mark.parametrize("limit", [1, 7, 16, 40, 10_000])
@pytest.mark.parametrize("bos", [False, True])
def test_tokens_are_the_exact_text_up_to_the_limit(bos: bool, limit: int) -> None:
    model, text = reader(bos=bos), HOSTILE + text_of(20)
    seen = inspect(model, text, limit=limit, progress=False)
    whole = model.tokenizer(text, return_offsets_mapping=True)
    assert len(seen.tokens) == len(seen.counts[0]) == min(limit, len(whole.input_ids))
    shown = "".join(seen.tokens)
    assert text.startswith(shown)
    if limit >= len(whole.input_ids):
        assert shown == text
    else:  # the last token shown ends where the next begins, be it inside a character
        assert len(shown) == whole.offset_mapping[limit][0]
    assert not bos or seen.tokens[0] == ""


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InputError, match="The document is empty"):
        inspect(model_with("window", False), "", progress=False)


def test_page_holds_the_text_once_and_escaped() -> None:
    source = page(made())
    shown = Parsed(source).text
    assert shown.count(HOSTILE.replace("\0", "\N{REPLACEMENT CHARACTER}")) == 1
    assert shown.count("alert(1)") == 1
    assert source.count("alert(") == 2  # each once, neither in the data nor anywhere else
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in source


def test_a_hostile_document_is_harmless() -> None:
    tame = Parsed(page(made(text="A plain text.")))
    wild = Parsed(page(dataclasses.replace(made(), name=HOSTILE, backbone=HOSTILE)))
    assert wild.elements == tame.elements
    assert [tag for tag, _ in wild.elements].count("script") == len(wild.scripts) == 2
    assert wild.scripts[1] == tame.scripts[1]
    assert not any("alert" in script for script in wild.scripts)
    for _, attributes in wild.elements:
        assert not {"src", "href", "onerror"} & set(attributes)
    assert not re.search(r"https?:|@import|url\(", page(made(text="A plain text.")))


def test_data_is_compact_and_complete() -> None:
    seen = made()
    script = Parsed(page(seen)).scripts[0]
    assert json.loads(script) == {
        "lengths": [len(token) for token in seen.tokens],
        "counts": seen.counts,
        "heads": seen.heads,
        "sizes": [list(size) for size in seen.sizes],
    }
    assert " " not in script


SMALL = ["--policy", "window", "--budget", "24", "--chunk", "16", "--limit", "100"]


def test_command_writes_the_page(tiny_model: Path, tmp_path: Path) -> None:
    book, out = tmp_path / "<b>ook.txt", tmp_path / "page.html"
    book.write_text(text_of(200), "utf-8")
    out.write_bytes(BEGINS + b"an older page")
    done = run("inspect", book, "--out", out, "--model", tiny_model, *SMALL, "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"out": str(out), "tokens": 100, "live_tokens_mean": 24.0, "layers": 3}
    parsed = Parsed(out.read_text("utf-8"))
    assert "<b>ook.txt" in parsed.text
    assert "100 tokens" in parsed.text
    assert len(json.loads(parsed.scripts[0])["lengths"]) == 100
    assert sorted(tmp_path.iterdir()) == [book, out]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.txt", "--out", "OUT"], "cannot be read"),
        (["EMPTY", "--out", "OUT"], "is empty"),
        (["BOOK", "--out", "FOLDER"], "is a folder: give a file to --out"),
        (["BOOK", "--out", "BOOK"], "is what is read, and would be written over"),
        (["BOOK", "--out", "EMPTY"], "is no earlier result and would be lost: give another to --out"),
        (["BOOK", "--out", "BOOK/page.html"], "Nothing can be written into"),
        (["BOOK", "--out", "FOLDER/" + "x" * 255, "--chunk", "16"], "cannot be written"),
        (["BOOK", "--out", "OUT", "--limit", "0"], "'--limit'"),
        (["BOOK", "--out", "OUT", "--policy", "random"], "Unknown policy 'random'"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "book.txt").write_text(text_of(20), "utf-8")
    (tmp_path / "empty.txt").write_text(" \n", "utf-8")
    names = {"OUT": "page.html", "EMPTY": "empty.txt", "BOOK": "book.txt", "FOLDER": "folder"}
    given = [
        str(tmp_path / "/".join([names[first], *rest])) if first in names else argument
        for argument in arguments
        for first, *rest in [argument.split("/")]
    ]
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run("inspect", *SMALL, *given, "--model", tiny_model), expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_help_has_examples() -> None:
    done = run("inspect", "--help")
    assert done.returncode == 0
    assert b"Example" in done.stdout


# Chooses layer 1 and points at token 3, as a reader would.
READER = """<script>
layer.value = "1";
layer.dispatchEvent(new Event("change"));
spans[3].dispatchEvent(new Event("pointerover", { bubbles: true }));
</script>"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium to open the page with")
def test_a_browser_shows_tokens_layers_and_charts(tmp_path: Path) -> None:
    seen, file = made(text=HOSTILE + text_of(100)), tmp_path / "page.html"
    file.write_text(page(seen) + READER, "utf-8")
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'c'}",
    ]
    command += [*(f"--disable-{what}" for what in quiet), "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shown = Parsed(done.stdout.decode("utf-8"))
    spans = [attributes for tag, attributes in shown.elements if tag == "span" and "style" in attributes]
    depths = [float((span["style"] or "").removeprefix("--depth: ").rstrip(";")) for span in spans]
    heads = seen.heads[1]
    assert depths == pytest.approx([(count / heads) ** 0.5 for count in seen.counts[1]], abs=1e-3)
    assert f"in {seen.counts[1][3]} of {heads} heads" in shown.text
    assert [tag for tag, _ in shown.elements].count("polyline") == 2
    assert [tag for tag, _ in shown.elements].count("circle") == 2 * len(seen.sizes)
    assert [tag for tag, _ in shown.elements].count("option") == 1 + len(seen.heads)
    assert "".join(seen.tokens).replace("\r", "").replace("\0", "\ufffd") in shown.text.replace("\r", "")
