"""Documents as text: files of several kinds, with the page and the chapter of every character.

A new kind of document is one file beside these and one line in `hiermem.documents.formats`. Nothing heavy is
imported before a document is read.
"""

from hiermem.documents.document import Document as Document
from hiermem.documents.document import document_of_bytes as document_of_bytes
from hiermem.documents.document import document_of_text as document_of_text
from hiermem.documents.document import open_document as open_document
from hiermem.documents.document import open_named as open_named
from hiermem.documents.document import read_document as read_document
from hiermem.documents.formats import KINDS as KINDS
from hiermem.documents.formats import is_readable as is_readable
from hiermem.documents.text import decoded_text as decoded_text
from hiermem.documents.text import file_text as file_text
from hiermem.documents.text import warn_of_name as warn_of_name
