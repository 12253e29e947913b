"""A multipart upload, written to the disk as it comes: no part of it is held in memory."""

import os
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from hiermem.server.failures import ApiError, wrong

_FIELD = 4096  # bytes of a field that is no file
_FIELDS = 16
_HEADER = 4096

PURPOSES = ("assistants", "user_data", "batch", "fine-tune", "vision", "evals")


class Upload:
    """The parts of one upload.

    Args:
        path: where the bytes of its file go.
        most: bytes of the file.

    Attributes:
        file_name: as the client gave it; None: no file has come.
        bytes: of the file so far.
        fields: other fields, by name.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        self.file_name: str | None = None
        self.bytes = 0
        self.fields: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._headers: dict[str, bytes] = {}
        self._header, self._value, self._data = b"", b"", bytearray()
        self._field, self._is_file, self._ended = "", False, False

    async def read(self, request: Request) -> None:
        """Take in a request's body.

        Raises:
            ApiError: it is no such upload, or too large.
        """
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise wrong("An upload is sent as multipart/form-data, with a boundary.", code="invalid_upload")
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            parser = MultipartParser(boundary, callbacks)
            async for chunk in request.stream():
                parser.write(chunk)
            parser.finalize()
            if not self._ended:
                raise wrong("The upload ends before its last boundary: send it again.", code="invalid_upload")
            if self._file is not None:
                await run_in_threadpool(self._sync)
        except MultipartParseError as error:
            raise wrong("The upload is no multipart body: send it again.", code="invalid_upload") from error
        finally:
            if self._file is not None:
                self._file.close()

    def _sync(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def _begin(self) -> None:
        self._headers, self._data, self._field, self._is_file = {}, bytearray(), "", False
        if len(self.fields) >= _FIELDS:
            raise wrong("The upload has too many fields.", code="invalid_upload")

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > _HEADER or len(self._headers) > _FIELDS:
            raise wrong("A header of the upload is too long.", code="invalid_upload")

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header = self._value = b""

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options
        if self._is_file != (self._field == "file"):
            raise wrong("An upload has one field 'file', which is a file.", "file", "invalid_upload")
        if not self._is_file:
            return
        if self._file is not None:
            raise wrong("An upload has one file: send others by themselves.", "file", "invalid_upload")
        self.file_name = options[b"filename"].decode("utf-8", "replace")
        self._file = self._path.open("xb")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.bytes += end - start
            if self.bytes > self._most:
                raise too_large(self._most)
            assert self._file is not None
            self._file.write(memoryview(data)[start:end])
            return
        self._data += data[start:end]
        if len(self._data) > _FIELD:
            raise wrong(f"The field {self._field[:40]!r} is too long.", self._field[:40], "invalid_upload")

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._field] = bytes(self._data).decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def too_large(most: int) -> ApiError:
    """A body that is too large."""
    shown = f"{most / 2**20:.0f} MiB" if most >= 2**20 else f"{most} bytes"
    return ApiError(
        413, f"This is larger than {shown}: send less.", "too_large", headers={"Connection": "close"}
    )
