"""An asyncio client for the Qamera AI video API."""
