"""Where a batch's requests come from: any iterable, read one by one."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import Final, Protocol, cast, runtime_checkable

from ..errors import ConfigurationError, short_repr

_log = logging.getLogger("qamera_async")

END: Final = object()


@runtime_checkable
class _Indexed(Protocol):
    def __getitem__(self, index: int, /) -> object: ...


class Source:
    """Reads an iterable or async iterable; nothing of it runs before the first ``read``.

    Args:
        requests: What is to be read.

    Raises:
        ConfigurationError: It is no iterable.

    """

    def __init__(self, requests: object) -> None:
        if isinstance(requests, str | bytes) or not isinstance(requests, AsyncIterable | Iterable | _Indexed):
            raise ConfigurationError(
                f"requests must be an iterable or async iterable of requests, not {short_repr(requests)}."
            )
        self._requests: object = requests
        self._iterator: Iterator[object] | AsyncIterator[object] | None = None

    async def read(self) -> object:
        """Give the next one, or ``END``; raises what the iterable raises.

        Raises:
            RuntimeError: It raised what only ends loops and generators, and ended none.

        """
        try:
            if self._iterator is None:
                self._iterator = self._begin()
            if isinstance(self._iterator, AsyncIterator):
                return await anext(self._iterator, END)
            return next(self._iterator, END)
        except (StopIteration, StopAsyncIteration, GeneratorExit) as error:
            # On its way up it would end what has nothing to do with it.
            raise RuntimeError(f"The iterable of a batch's requests raised {error!r}.") from error

    async def aclose(self) -> None:
        """End a generator where it stands, whatever it says to that; idempotent."""
        source, self._requests, self._iterator = self._iterator or self._requests, (), None
        try:
            if isinstance(source, AsyncGenerator):
                await cast("AsyncGenerator[object, None]", source).aclose()
            elif isinstance(source, Generator):
                cast("Generator[object, None, None]", source).close()
        except Exception:
            _log.exception("the iterable of a batch's requests raised when it was closed")

    def _begin(self) -> Iterator[object] | AsyncIterator[object]:
        requests = self._requests
        if isinstance(requests, AsyncIterable):
            return aiter(cast("AsyncIterable[object]", requests))
        return iter(cast("Iterable[object]", requests))
