"""The list as it came last, and what the server is asked in place of the same list once more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

# For how long, in seconds, the server's word is taken that nothing has changed. Who computes a wrong ETag
# would hide for ever what is finished.
_TRUSTED = 60.0


class Latest:
    """The list as it came last, and as it was read."""

    def __init__(self) -> None:
        self.known: tuple[protocol.Answer, protocol.Listing] | None = None
        self._whole_at = -math.inf

    def condition(self, now: float) -> Mapping[str, str]:
        """Give the headers with which the server may say just that it is the same; ``now`` in seconds."""
        if self.known is None or now - self._whole_at > _TRUSTED:
            return {}
        return protocol.unless_same(self.known[0])

    def take(self, answer: protocol.Answer, now: float) -> tuple[protocol.Answer, protocol.Listing, bool]:
        """Take an answer to that; give the list, and whether it is another one. The same is not read again.

        Raises:
            InvalidResponseError: it is no list.
        """
        whole = self.known is None or answer.status != protocol.NOT_MODIFIED
        if self.known is not None and not whole:
            answer = self.known[0].renewed(answer)
        if self.known is not None and answer.body == self.known[0].body:
            another, listing = False, self.known[1]
        else:
            another, listing = True, protocol.read_listing(answer)
        self.known = answer, listing
        if whole:
            self._whole_at = now
        return answer, listing, another
