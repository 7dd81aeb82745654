"""Where what the file system says becomes a ``DownloadError``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..errors import TargetExistsError
from .final import UnusableError
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import DownloadError
    from .errand import Errand

_T = TypeVar("_T")


async def filed(errand: Errand, work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
    """Do something to files in a thread; what goes wrong there is a ``DownloadError``."""
    try:
        return await in_thread(work, undo)
    except UnusableError as error:
        raise errand.error(f"It can't be written: {error}", None) from None
    except FileExistsError:
        raise TargetExistsError(
            "There is a file already", record_id=errand.record_id, path=errand.path
        ) from None
    except OSError as error:
        raise disk_error(errand, error) from error


def disk_error(errand: Errand, error: OSError) -> DownloadError:
    """Give the error for what the system said; of a full disk, say."""
    return errand.error(f"It can't be written: {error.strerror or type(error).__name__}", None)
