"""What came, by its type and its first bytes: a clip or an image, or something else. No I/O."""

from __future__ import annotations

import codecs
import re
from typing import Final

HEAD: Final = 512  # bytes; so many are looked at before anything is written
BOXES: Final = frozenset(
    {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"free", b"skip", b"wide", b"uuid"}
)
JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
_PAGE_TYPES = re.compile(
    r"text/.*|.*[/+](html|xml|json)|application/(xhtml\+xml|javascript|problem\+json|x-ndjson)"
)
_MEDIA_TYPES = re.compile(r"(video|image)/.+")
# The pictures; then WebM and Matroska, Ogg, FLV, ASF, MPEG-1 and -2.
_STARTS = (
    *(JPEG, PNG, b"GIF87a", b"GIF89a"),
    *(
        b"\x1a\x45\xdf\xa3",
        b"OggS\x00",
        b"FLV\x01",
        b"\x30\x26\xb2\x75",
        b"\x00\x00\x01\xba",
        b"\x00\x00\x01\xb3",
    ),
)
# What is never a clip, whatever its type says: gzip, zip, Zstandard, PDF.
_OTHERS = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"%PDF-")
_RIFF_KINDS = frozenset({b"AVI ", b"WEBP"})
_TRANSPORT_PACKET = 188  # bytes of MPEG-TS; each begins with the same one
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_PRINTABLE = bytes({*range(0x20, 0x7F), *b"\t\n\v\f\r"})
_MOSTLY = 0.75
_DECODER = codecs.getincrementaldecoder("utf-8")


def is_page_type(content_type: str) -> bool:
    """Say whether a Content-Type, "" where there is none, is that of text for somebody to read."""
    return _PAGE_TYPES.fullmatch(_plain(content_type)) is not None


def is_media(content_type: str, head: bytes) -> bool:
    """Say whether an answer is a video or an image.

    Args:
        content_type: the header's value; "" where there is none. It is believed where the bytes say nothing.
        head: its first bytes, ``HEAD`` of them or all there are.
    """
    if is_page_type(content_type):
        return False
    if _is_known(head):
        return True
    typed = _MEDIA_TYPES.fullmatch(_plain(content_type)) is not None
    return typed and not head.startswith(_OTHERS) and not _is_text(head)


def starts_with_box(head: bytes) -> bool:
    """Say whether bytes begin like an MP4, a MOV, an AVIF or a HEIC."""
    # A text may have the name of a box at that place, but not with a size before it.
    return head[4:8] in BOXES and any(byte not in _PRINTABLE for byte in head[:4])


def _is_known(head: bytes) -> bool:
    if head.startswith(_STARTS) or starts_with_box(head):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] in _RIFF_KINDS
    if head[:2] == b"BM":
        return len(head) > 14 and head[6:10] == bytes(4)  # noqa: PLR2004 - reserved in a BMP's header
    return len(head) > _TRANSPORT_PACKET and set(head[::_TRANSPORT_PACKET]) == {0x47}


def _is_text(head: bytes) -> bool:
    if head.startswith(_BOMS):
        return True
    seen = head.replace(b"\0", b"")
    if not seen:
        return True  # nothing to be seen at all
    try:
        text = _DECODER().decode(seen)  # unlike ``bytes.decode`` it takes one that ends within a character
    except UnicodeDecodeError:
        return len(seen.translate(None, _PRINTABLE)) <= len(seen) * (1 - _MOSTLY)
    return sum(char.isprintable() or char.isspace() for char in text) >= len(text) * _MOSTLY


def _plain(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
