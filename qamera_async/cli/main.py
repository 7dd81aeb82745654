"""The ``qamera`` command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from .codes import Code

if TYPE_CHECKING:
    from types import FrameType


def main() -> NoReturn:
    """Run the command line, and end with its exit code."""
    with contextlib.suppress(ValueError):  # in another thread than the main one
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _run(sys.argv[1:])
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = Code.INTERRUPTED
    except ModuleNotFoundError as error:
        code = _failed(f"{error.name} is not installed: pip install 'qamera-async[cli]'", Code.FAILED)
    except (BrokenPipeError, SystemExit):  # the latter is what rich makes of the former
        code = Code.GONE
    except OSError as error:
        code = _failed(str(error), Code.FAILED)
    with contextlib.suppress(ValueError, OSError):
        # What is said is said: neither a last Ctrl-C nor a full pipe may add a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if code in {Code.GONE, Code.FAILED} and sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(arguments: list[str]) -> Code:
    from cyclopts import CycloptsError  # noqa: PLC0415 - it may not be installed

    from .app import app  # noqa: PLC0415 - the same

    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        return Code(command(*bound.args, **bound.kwargs) or Code.DONE)
    except (CycloptsError, ValueError) as error:
        text = " ".join(str(error).split())
        if "--json" in arguments:
            from .values import line  # noqa: PLC0415 - it takes a while

            print(line("error", {"error": "UsageError", "message": text}))  # noqa: T201 - it is a command
        return _failed(f"{text} See qamera --help.", Code.USAGE)


def _failed(text: str, code: Code) -> Code:
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        print(f"error: {text}", file=sys.stderr)  # noqa: T201 - it is a command
    return code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
