"""Models by their name on the hub: what cannot be reached is said at once, and what is kept here is found."""

import socket
import time
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from hiermem.errors import InputError
from hiermem.loading import LoadOptions, as_reachable
from hiermem.model import HierMemModel


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine without a network, on which nobody may wait; which hosts were asked for."""
    asked: list[Any] = []

    def refuse(host: Any, *_: Any, **__: Any) -> NoReturn:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no network")

    def wait(seconds: float) -> NoReturn:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", wait)
    return asked


def test_without_a_network_nobody_waits(alone: list[Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The model 'some/model' could not be loaded .*: give a folder"):
        HierMemModel.from_pretrained("some/model", cache_dir=tmp_path)
    assert 0 < len(alone) <= 2


def test_what_is_no_name_of_the_hub_is_not_asked_for(alone: list[Any], tmp_path: Path) -> None:
    for name in ("a/b/c", "smollm2", str(tmp_path), "../no/such"):
        assert as_reachable(name, LoadOptions()) == LoadOptions()
    with pytest.raises(InputError, match="could not be loaded"):
        HierMemModel.from_pretrained("a/b/c")
    assert alone == []


@pytest.mark.parametrize(
    ("answer", "reached"),
    [
        (RepositoryNotFoundError, True),
        (HFValidationError, True),
        (None, True),
        (ConnectionError, False),
        (LocalEntryNotFoundError, False),
        (TimeoutError, False),
    ],
)
def test_a_hub_that_answers_is_asked_for_everything(
    monkeypatch: pytest.MonkeyPatch, answer: type[Exception] | None, reached: bool
) -> None:
    def head(url: str, **given: Any) -> None:
        assert "some/model" in url and given["token"] == "secret"
        if answer is not None:
            raise answer.__new__(answer)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
    options = LoadOptions(hub={"token": "secret"})
    own = as_reachable("some/model", options)
    assert own.hub == {"token": "secret"} | ({} if reached else {"local_files_only": True})
