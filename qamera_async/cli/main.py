"""The ``qamera`` command."""

from __future__ import annotations

import sys
from typing import NoReturn

from .codes import Code


def main() -> NoReturn:
    """Run the command line, and end with its exit code."""
    try:
        from .app import app  # noqa: PLC0415 - it needs what may not be installed
    except ModuleNotFoundError as error:
        sys.exit(f"qamera: {error.name} is not installed: pip install 'qamera-async[cli]'")

    command, bound, _ = app.parse_args(sys.argv[1:])
    try:
        code = command(*bound.args, **bound.kwargs)
    except KeyboardInterrupt:
        code = Code.INTERRUPTED
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - it is a command
        code = Code.USAGE
    sys.exit(code)


if __name__ == "__main__":
    main()
