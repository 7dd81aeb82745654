"""The wire, as pure functions: a request becomes bytes, an answer becomes a model or an error.

No I/O and no clock. The only room that knows the wire's names.
"""

from .answer import NOT_MODIFIED, Answer, unless_same
from .listing import Listing, read_listing, read_some, read_videos
from .pieces import Snapshots, items_of, list_of
from .receipt import read_receipt, receipt_reader
from .refusal import error_of, is_refusal, retry_after
from .requests import IDEMPOTENCY_HEADER, KEY_HEADER, VIDEOS_PATH, encode

__all__ = [
    "IDEMPOTENCY_HEADER",
    "KEY_HEADER",
    "NOT_MODIFIED",
    "VIDEOS_PATH",
    "Answer",
    "Listing",
    "Snapshots",
    "encode",
    "error_of",
    "is_refusal",
    "items_of",
    "list_of",
    "read_listing",
    "read_receipt",
    "read_some",
    "read_videos",
    "receipt_reader",
    "retry_after",
    "unless_same",
]
