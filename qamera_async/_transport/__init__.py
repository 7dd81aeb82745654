"""Single HTTP requests: to the API with its key, and to any other host without it."""

from .api import ApiClient, Attempt, is_transient, map_aiohttp_exceptions, retry
from .downloads import AddressRefusedError, DownloadClient, StreamingResponse, parse_url
from .settings import DEFAULT_BASE_URL, ConnectionSettings, Secret, api_origin

__all__ = [
    "DEFAULT_BASE_URL",
    "AddressRefusedError",
    "ApiClient",
    "Attempt",
    "ConnectionSettings",
    "DownloadClient",
    "Secret",
    "StreamingResponse",
    "api_origin",
    "is_transient",
    "map_aiohttp_exceptions",
    "parse_url",
    "retry",
]
