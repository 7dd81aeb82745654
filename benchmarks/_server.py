"""A sandbox in a process of its own, so that its CPU is not the client's; prints its count at the end."""

import asyncio
import json
import sys
from collections import Counter

from qamera_async.sandbox import Sandbox


async def main() -> None:
    """Serve until standard input ends, then print how the requests were answered, as JSON."""
    options = json.loads(sys.argv[1])
    records = options.pop("records", 0)
    if options.get("quota"):
        options["quota"] = tuple(options["quota"])
    async with Sandbox(**options) as sandbox:
        sandbox.add_records(records)
        print(sandbox.url, flush=True)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
        counted = Counter(str(request.status) for request in sandbox.requests)
        counted["GET"] = sum(request.method == "GET" for request in sandbox.requests)
        print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
