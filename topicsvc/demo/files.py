"""The files of the demo's page."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

__all__ = ["PageFile", "page_files"]

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "topicsvc-client.js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page.

    Attributes:
        content_type: the value of ``Content-Type``.
        content: its bytes.
    """

    content_type: bytes
    content: bytes


def page_files() -> dict[bytes, PageFile]:
    """Return the files of the page by their paths; ``/`` is the page itself."""
    directory = files(__package__)
    return {
        b"/" if name == "index.html" else b"/" + name.encode("ascii"): PageFile(
            content_type.encode("ascii"), directory.joinpath(name).read_bytes()
        )
        for name, content_type in _TYPES.items()
    }
