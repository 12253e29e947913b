"""Kinds of files that are known and not read: what to do with them."""

from hiermem.documents.parts import NotReadableError

_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # of old Office files, and of encrypted new ones


def check_supported(data: bytes) -> None:
    """Refuse a file of a kind that is known and not read.

    Raises:
        NotReadableError: it is one.
    """
    if data.startswith(rb"{\rtf"):
        raise NotReadableError("is in the Rich Text Format: save it as .docx or PDF first")
    if not data.startswith(_COMPOUND):
        return
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise NotReadableError("needs a password: save it without one first")
    if "WordDocument".encode("utf-16-le") in data:
        raise NotReadableError("is a Word file of the old kind (.doc): save it as .docx first")
    raise NotReadableError("is an Office file of an old kind: save it as .docx or PDF first")
