"""`/v1/files`: documents come, are listed, and go."""

from contextlib import suppress
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from hiermem.server.failures import json_response, wrong
from hiermem.server.guard import UPLOADS
from hiermem.server.names import clean_name
from hiermem.server.service import Service
from hiermem.server.shapes import file_object, listed
from hiermem.server.uploads import PURPOSES, Upload


def files_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post(UPLOADS)
    async def create(request: Request) -> Response:
        service.check_open()
        identity, part = service.files.new()
        upload = Upload(part, service.settings.max_upload_bytes)
        try:
            await upload.read(request)
            if set(upload.fields) - {"purpose"}:
                name = sorted(set(upload.fields) - {"purpose"})[0][:40]
                raise wrong(f"The field {name!r} is not known here: leave it out.", name, "unknown_parameter")
            purpose = upload.fields.get("purpose", "user_data")
            if purpose not in PURPOSES:
                raise wrong(f"There is no such purpose: give one of {', '.join(PURPOSES)}.", "purpose")
            if upload.file_name is None:
                raise wrong(
                    "The upload has no file: send one in the field 'file'.", "file", "missing_parameter"
                )
            if not upload.bytes:
                raise wrong("The file is empty: give one with at least one character.", "file", "empty")
            name = clean_name(upload.file_name)
            file = await run_in_threadpool(service.files.accept, identity, part, name, purpose, upload.bytes)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        service.intake.wake()
        return json_response(file_object(file))

    @router.get(UPLOADS)
    def list_all(purpose: str | None = None) -> Response:
        files = [file for file in service.all_files() if purpose in (None, file.purpose)]
        return json_response(listed([file_object(file) for file in files]))

    @router.get(UPLOADS + "/{file_id}")
    def retrieve(file_id: str) -> Response:
        return json_response(file_object(service.file(file_id)))

    @router.get(UPLOADS + "/{file_id}/content")
    def content(file_id: str) -> Response:
        file = service.file(file_id)
        text, _ = service.text(file)
        name = quote(f"{file.name.rsplit('/', 1)[-1]}.txt", safe="")
        disposition = f"attachment; filename*=UTF-8''{name}"
        return Response(
            text.encode("utf-8", "replace"),
            media_type="text/plain; charset=utf-8",
            headers={"Content-Disposition": disposition},
        )

    @router.delete(UPLOADS + "/{file_id}")
    def delete(file_id: str) -> Response:
        service.remove(file_id)
        service.count_documents()
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router
