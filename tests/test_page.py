"""The page in a real browser: documents come and go, questions are asked, sources are opened."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from readers import reader, text_of
from serving import Client, serving

from hiermem.documents import Document, document_of_bytes
from hiermem.memory.places import Place, Places
from hiermem.model import HierMemModel
from hiermem.server import intake

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="there is no axe")

HARBOUR = f"The captain of the Orion is Ahab. {text_of(150, seed=1)}. The key hangs in the mill.\n"
HOSTILE = "<img src=x onerror=document.body.dataset.hacked=1>.txt"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service with documents, one of which has pages and one a hostile name and text."""
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(tmp_path_factory.mktemp("library") / "papers") as client,
    ):
        patch.setattr(intake, "document_of_bytes", paged)
        client.wait().read("harbour.txt", HARBOUR)
        client.read(
            "atlas.pdf",
            "".join(f"Page {n} tells of island {n}. {text_of(90, seed=n)}\n\n" for n in range(1, 30)),
        )
        client.read(
            HOSTILE, "The <script>document.body.dataset.hacked=1</script> walrus sings <b>loudly</b>."
        )
        yield client


def paged(name: str, data: bytes) -> Document:
    """A document, which has pages where it says so, if it is called a PDF."""
    if not name.endswith(".pdf"):
        return document_of_bytes(name, data)
    text = data.decode("utf-8")
    found = re.finditer(r"Page (\d+) tells", text)
    marks = [(each.start(), Place(int(each[1]), f"Island {each[1]}")) for each in found]
    return Document(name, "pdf", text, Places(marks), "0" * 64)


def opened(browser: Any, client: Client, scheme: str = "light", size: dict[str, int] = DESKTOP) -> Any:
    """The page, with the documents in sight; it may not complain of anything."""
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda told: page.faults.append(told.text) if told.type == "error" else None)
    page.on(
        "request",
        lambda sent: None if sent.url.startswith(str(client.base_url)) else page.faults.append(sent.url),
    )
    page.goto(str(client.base_url))
    page.wait_for_selector("#state[data-state=ready]")
    page.wait_for_selector(".document.done", state="attached")
    return page


@pytest.fixture
def page(browser: Any, service: Client) -> Iterator[Any]:
    made = opened(browser, service)
    yield made
    assert made.faults == [] and made.evaluate("document.body.dataset.hacked") is None
    made.context.close()


def ask(page: Any, question: str) -> None:
    """Type a question, and wait until it is answered."""
    count = page.locator(".turn").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_function(
        "count => document.querySelectorAll('.turn').length > count && !document.querySelector('.turn.busy')",
        arg=count,
    )


def test_a_question_is_answered_and_its_source_opened_by_keys_alone(page: Any) -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("Who is the captain of the Orion?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".source")
    page.wait_for_selector(".turn:not(.busy)")
    assert page.inner_text(".turn-question") == "Who is the captain of the Orion?"
    assert "line 1" in page.inner_text(".source >> nth=0")
    page.locator(".source").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#reader mark")
    assert page.inner_text("#reader-name") == "harbour.txt"
    marked = page.text_content("#reader mark")
    assert marked in HARBOUR and "captain of the Orion" in marked
    assert page.evaluate("document.activeElement.id") == "reader-body"
    page.keyboard.press("Escape")
    assert page.is_hidden("#reader")
    assert page.evaluate("document.activeElement.className") == "source"


def test_the_passage_stands_in_sight_and_pages_on_both_ways(page: Any, service: Client) -> None:
    page.select_option("#within", "atlas.pdf")
    ask(page, "What is told of island 17?")
    assert page.inner_text(".turn-scope") == "In atlas.pdf"
    card = page.locator(".source", has_text="page 17").first
    assert "Island 17" in card.inner_text()
    card.click()
    page.wait_for_selector("#reader mark")
    assert "island 17" in page.text_content("#reader mark")
    box, pane = page.locator("#reader mark").bounding_box(), page.locator("#reader-body").bounding_box()
    assert pane["y"] <= box["y"] <= pane["y"] + pane["height"] / 2
    assert card.get_attribute("aria-expanded") == "true"
    place = page.evaluate("document.querySelector('#reader mark').getBoundingClientRect().top")
    page.get_by_role("button", name="Earlier").evaluate("button => button.click()")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.page-mark')].some(m => m.textContent.startsWith('Page 5 '))"
    )
    assert (
        abs(page.evaluate("document.querySelector('#reader mark').getBoundingClientRect().top") - place) < 4
    )
    while page.get_by_role("button", name="Later").is_visible():
        page.evaluate("document.getElementById('reader-body').scrollTop = 1e9")
        page.wait_for_timeout(50)
    while page.get_by_role("button", name="Earlier").is_visible():
        page.get_by_role("button", name="Earlier").evaluate("button => button.click()")
        page.wait_for_timeout(50)
    marks = page.locator(".page-mark").all_inner_texts()
    assert marks == [f"Page {n} · Island {n}" for n in range(1, 30)]
    shown = page.eval_on_selector_all("#reader-body p", "all => all.map(p => p.textContent).join('')")
    atlas = next(each for each in service.get("/v1/files").json()["data"] if each["filename"] == "atlas.pdf")
    assert shown == service.get(f"/v1/files/{atlas['id']}/content").text


def test_only_pages_up_to_one_are_asked(page: Any) -> None:
    page.select_option("#within", "atlas.pdf")
    page.fill("#page", "16")
    ask(page, "What is told of island 17?")
    assert page.inner_text(".turn-scope") == "In atlas.pdf, up to page 16"
    places = page.locator(".source-place").all_inner_texts()
    assert places and all(int(re.search(r"page (\d+)", place)[1]) <= 16 for place in places)  # type: ignore[index]


def test_what_is_not_there_is_said_so(page: Any) -> None:
    ask(page, "Which chromodynamics?")
    assert "Not in the documents" in page.inner_text(".turn-state")
    assert page.locator(".source").count() == 0


def test_names_and_texts_are_text(page: Any) -> None:
    assert page.locator(".document-name", has_text="onerror").inner_text() == HOSTILE
    page.select_option("#within", HOSTILE)
    ask(page, "Who sings loudly?")
    page.locator(".source").first.click()
    page.wait_for_selector("#reader mark")
    assert "<b>loudly</b>" in page.inner_text("#reader-body")
    assert page.locator("#reader b, #turns b, #turns img, #documents img, script:not([src])").count() == 0


def test_a_conversation_outlasts_a_reload(page: Any) -> None:
    ask(page, "Who is the captain of the Orion?")
    ask(page, "Which chromodynamics?")
    before = page.locator(".turn-question").all_inner_texts(), page.inner_text(".turn-answer >> nth=0")
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('.turn').length === 2")
    assert (
        page.locator(".turn-question").all_inner_texts(),
        page.inner_text(".turn-answer >> nth=0"),
    ) == before
    page.click("#fresh")
    assert page.locator(".turn").count() == 0 and page.is_visible("#welcome")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nobody_is_left_out(browser: Any, service: Client, scheme: str, size: dict[str, int]) -> None:
    page, checker = opened(browser, service, scheme, size), axe.Axe()

    def check() -> None:
        found = checker.run(page).response["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    check()
    ask(page, "Who is the captain of the Orion?")
    ask(page, "Which chromodynamics?")
    check()
    page.locator(".source").first.click()
    page.wait_for_selector("#reader mark")
    check()
    page.keyboard.press("Escape")
    if size == PHONE:
        assert page.is_hidden("#library")
        page.click("#menu")
        assert page.is_visible("#choose")
        check()
    page.click("#paste")
    check()
    page.keyboard.press("Escape")
    page.locator(".document .icon").first.click()
    check()
    assert page.faults == []
    page.context.close()


def test_colours_can_be_chosen_and_stay(page: Any) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.click("#theme")
    dark = ground()
    assert dark != light and page.get_attribute("#theme", "aria-pressed") == "true"
    page.reload()
    assert ground() == dark
    page.click("#theme")
    assert ground() == light


def test_documents_are_added_watched_and_removed(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "wombats.md"
    file.write_text("# Wombats\n\nThe wombat Ada digs at Fernhill.\n", encoding="utf-8")
    with serving(tmp_path / "library", index=False) as client:
        client.wait().read("harbour.txt", HARBOUR)
        page = opened(browser, client)
        page.set_input_files("#picker", str(file))
        page.wait_for_selector(".document.done:has-text('wombats.md')")
        page.click("#paste")
        page.fill("#paste-name", "tides")
        page.fill("#paste-text", "High tide is at noon.")
        page.click("#paste-add")
        page.wait_for_selector(".document.done:has-text('tides.txt')")
        data = page.evaluate_handle(
            "text => { const held = new DataTransfer(); held.items.add(new File([text], 'long.txt'));"
            "return held; }",
            text_of(60_000, seed=3),
        )
        page.dispatch_event("body", "dragenter", {"dataTransfer": data})
        assert page.is_visible("#drop")
        page.dispatch_event("body", "drop", {"dataTransfer": data})
        assert page.is_hidden("#drop")
        page.wait_for_selector(".document.reading progress")
        page.wait_for_function("() => document.querySelector('.document.reading progress')?.value > 0")
        assert page.get_attribute("#state", "data-state") == "reading"
        ask(page, "Where digs the wombat Ada?")
        assert page.inner_text(".source-name >> nth=0") == "wombats.md"
        for name, count in (("long.txt", 3), ("wombats.md", 2)):
            page.get_by_role("button", name=f"Remove {name}").click()
            page.keyboard.press("Escape")
            page.get_by_role("button", name=f"Remove {name}").click()
            assert name in page.inner_text("#remove-text")
            page.click("#remove-yes")
            page.wait_for_function("n => document.querySelectorAll('.document').length === n", arg=count)
        assert {each["filename"] for each in client.get("/v1/files").json()["data"]} == {
            "harbour.txt",
            "tides.txt",
        }
        assert page.inner_text("#memory dd >> nth=0") == "2"
        broken = {"name": "broken.bin", "mimeType": "application/octet-stream", "buffer": b"\x7fELF\0\0\1\0"}
        page.set_input_files("#picker", [broken])
        page.wait_for_selector(".document.failed")
        assert page.inner_text(".document.failed .document-facts").endswith(".")
        assert page.faults == []
        page.context.close()


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "library", api_keys=("long-enough",), key="long-enough") as client:
        client.wait().read("harbour.txt", HARBOUR)
        page = browser.new_context(viewport=DESKTOP).new_page()
        page.set_default_timeout(20_000)
        page.goto(str(client.base_url))
        page.wait_for_selector("#key-dialog[open]")
        assert page.inner_text("#state-text") == "Key needed"
        page.fill("#key-input", "wrong-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", "long-enough")
        page.keyboard.press("Enter")
        page.wait_for_selector(".document.done")
        ask(page, "Who is the captain of the Orion?")
        assert page.locator(".source").count() > 0
        page.context.close()


def test_states_are_told_and_answers_stopped(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loads, slow = reader(), [False], [0.0]
    read = model.adapter.read_chunk

    def load() -> HierMemModel:
        while not loads[0]:
            time.sleep(0.01)
        return model

    def slowly(*arguments: Any) -> Any:
        time.sleep(slow[0])
        return read(*arguments)

    monkeypatch.setattr(model.adapter, "read_chunk", slowly)
    with serving(tmp_path / "library", load) as client:
        page = browser.new_context(viewport=DESKTOP).new_page()
        page.set_default_timeout(20_000)
        page.goto(str(client.base_url))
        page.wait_for_selector("#state[data-state=loading]")
        assert page.inner_text("#state-text") == "Loading the model"
        loads[0] = True
        page.wait_for_selector("#state[data-state=ready]")
        assert page.is_disabled("#send") and "Add a document" in page.get_attribute(
            "#question", "placeholder"
        )
        page.set_input_files(
            "#picker", [{"name": "h.txt", "mimeType": "text/plain", "buffer": HARBOUR.encode()}]
        )
        page.wait_for_selector(".document.done")
        slow[0] = 0.2
        page.fill("#question", "Who is the captain of the Orion?")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('.turn-answer')?.textContent.length > 0")
        assert page.inner_text("#send") == "Stop"
        page.click("#send")
        page.wait_for_selector(".turn-note:has-text('Stopped')")
        client.until(lambda: client.value('hiermem_answers_total{outcome="cancelled"}') == 1)
        slow[0] = 0.0
        ask(page, "Who is the captain of the Orion?")
        assert "Cut short" in page.inner_text(".turn >> nth=1")
    page.fill("#question", "Who?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn-state.bad")
    assert "cannot be reached" in page.inner_text(".turn-state.bad") and page.is_visible("text=Ask again")
    page.wait_for_selector("#state[data-state=offline]")
    page.context.close()
