"""Makes a checkout that is named hiermem the package.

Python takes such a folder, seen from its parent, for the package, before any installed one. Without this file
it would be an empty namespace package.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent
_PACKAGE = _ROOT / "hiermem" / "__init__.py"

__path__ = [str(_PACKAGE.parent), str(_ROOT)]
exec(compile(_PACKAGE.read_text("utf-8"), str(_PACKAGE), "exec"))
