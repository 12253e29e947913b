"""ZIP archives that documents are packed in, with bounds on what they may unpack to."""

import io
import zipfile

from hiermem.documents.parts import NotReadableError

_MOST_FILES = 50_000
_MOST_BYTES = 1 << 30
_MOST_MARKUP = 128 << 20
_RATIO, _SMALL = 200, 16 << 20  # of unpacked to packed bytes, where there are more than a few

_MARKUP = (".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm", ".xht")
_ENCRYPTED = 0x1


class Archive:
    """The files of an archive in memory.

    Args:
        data: its bytes.

    Raises:
        NotReadableError: it is damaged, encrypted, or unpacks to too much.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise NotReadableError("is damaged or cut short: fetch or save it anew") from error
        files = self._zip.infolist()
        # zipfile unpacks no more of a file than its directory says, so this sum bounds all that is read.
        total = sum(each.file_size for each in files)
        markup = sum(each.file_size for each in files if each.filename.lower().endswith(_MARKUP))
        if len(files) > _MOST_FILES or total > _MOST_BYTES or markup > _MOST_MARKUP:
            raise NotReadableError(f"unpacks to too much ({total >> 20} MiB): give its text")
        if total > max(_SMALL, _RATIO * len(data)):
            raise NotReadableError(f"unpacks to {total // len(data)} times its size: give its text")
        if any(each.flag_bits & _ENCRYPTED for each in files):
            raise NotReadableError("needs a password: save it without one first")
        self._names = {each.filename for each in files}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> list[str]:
        """Names of all files."""
        return sorted(self._names)

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            NotReadableError: there is none of that name.
        """
        if name not in self._names:
            raise NotReadableError(f"is damaged (it lacks {name!r}): fetch or save it anew")
        return self._zip.read(name)


def holds(data: bytes, *names: str) -> bool:
    """Whether bytes are an archive that holds one of these files."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            return bool({*names} & {*found.namelist()})
    except Exception:  # zipfile raises many kinds on damaged archives; by its name it is opened again
        return False
