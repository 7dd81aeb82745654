"""Whether a file's own bytes prove that nothing is missing. No I/O."""

from __future__ import annotations

from .media import JPEG, PNG, starts_with_box

_JPEG_END = b"\xff\xd9"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_TAIL = 16  # bytes; as many as the longest end that is looked for
_SHORT_HEAD, _LONG_HEAD = 8, 16  # bytes of a box's size and name


class Proof:
    """Follows a body from its first byte on, and knows at its end whether it is whole.

    An MP4 is where its outermost boxes fill it exactly, with the index and the media it needs (of a
    fragmented one: up to the index of its fragments); a JPEG or PNG where it ends as it must.
    """

    def __init__(self) -> None:
        self._start = b""
        self._tail = b""
        self._boxes = _Boxes()
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        if self._size < _LONG_HEAD:
            self._start = (self._start + piece)[:_LONG_HEAD]
        self._size += len(piece)
        self._tail = (self._tail + piece[-_TAIL:])[-_TAIL:]
        self._boxes.feed(piece)

    def is_whole(self) -> bool:
        """Say whether what came so far is a whole file for sure."""
        if self._start.startswith(JPEG):
            return self._tail.endswith(_JPEG_END)
        if self._start.startswith(PNG):
            return self._tail.endswith(_PNG_END)
        return starts_with_box(self._start) and self._boxes.is_whole()


class _Boxes:
    """Steps from one outermost box of an MP4 to the next."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of the present box still to come
        self._names: set[bytes] = set()
        self._last = b""
        self._broken = False

    def feed(self, piece: bytes) -> None:
        at = 0
        while at < len(piece) and not self._broken:
            if self._left:
                step = min(self._left, len(piece) - at)
                self._left -= step
                at += step
                continue
            wanted = self._wanted()
            taken = piece[at : at + wanted - len(self._head)]
            at += len(taken)
            self._head += taken
            if len(self._head) == self._wanted():
                self._open()

    def is_whole(self) -> bool:
        if self._broken or self._left or self._head or b"moov" not in self._names:
            return False
        return self._last == b"mfra" if b"moof" in self._names else b"mdat" in self._names

    def _wanted(self) -> int:
        return _LONG_HEAD if self._head[:4] == b"\x00\x00\x00\x01" else _SHORT_HEAD

    def _open(self) -> None:
        head, self._head = self._head, b""
        size = int.from_bytes(head[8:] if len(head) == _LONG_HEAD else head[:4], "big")
        # 0 means "to the end of the file", wherever that is: it proves nothing.
        self._broken = size < len(head)
        self._left = size - len(head)
        self._last = head[4:8]
        self._names.add(self._last)
