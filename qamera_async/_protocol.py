"""The wire protocol as pure functions: requests to bytes, responses to models or errors.

The module does no I/O and reads no clock. It is the only one that knows the API's paths and field names.
`KINDS` is the one table of what can be generated: a new kind is one row here and one record class in
`_models`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import GenericAlias
from typing import Any, NoReturn, TypeGuard, cast

import attrs
import msgspec

from . import errors
from ._config import StatusRules
from ._models import JobState, Receipt, Record, ReelRequest, Request, Video, VideoRequest

KEY_HEADER = "X-Api-Key"
IDEMPOTENCY_HEADER = "Idempotency-Key"

# The number of records is checked before decoding, because a short record takes many times its bytes in
# memory. The longest body that the transport reads, 42 MiB, holds about 110,000 records as documented.
_MAX_RECORDS = 150_000
# A shorter body has at most 240,000 records, which take 50 MB, so it is decoded before they are counted.
_COUNTED_BODY = 5 * 512 * 1024
# A list that is not as documented is decoded by `json`, which builds every value and blocks the event loop.
# Below these limits that takes less than 0.5 s.
_MAX_LENIENT_BYTES = 12 * 1024 * 1024
_MAX_LENIENT_TOKENS = 300_000

_MAX_STATUS = 100  # characters
_MAX_EXCERPT = 200  # characters
_MAX_MESSAGE = 2_000  # characters
_MAX_REDACTED = 16 * 1024  # characters; only this much of a text is searched for the API key
_LONGEST_KEY = 8 * 1024  # characters; servers refuse longer headers
_MAX_RETRY_AFTER = 3600.0  # seconds; limits the effect of a wrong value
_MAX_CREDITS = 2**31
_MAX_DIGITS = 1_000  # of an integer in JSON

_OK = 200
_NOT_MODIFIED = 304
_CLIENT_ERROR = 400  # to 499
_SERVER_ERROR = 500  # to 599
_ETAG = re.compile(r'(W/)?"[!\x23-\x7e]{0,200}"')  # RFC 9110, 8.8.3
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_CREDITS = re.compile(r"required:\s*([0-9]{1,18})[^0-9]+available:\s*([0-9]{1,18})", re.IGNORECASE)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Besides its own errors, msgspec raises RecursionError for nested brackets and ValueError for a str with a
# lone surrogate.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)

# --- kinds ----------------------------------------------------------------------------------------


class _Entry(msgspec.Struct, gc=False, rename="camel", omit_defaults=True):
    """One record in the form of the list. `RecordListSpec` adds the other fields of the record type."""

    id: str


def _entry_type(spec: RecordListSpec) -> type[_Entry]:
    # The list has no field for the state, which follows from the status.
    names = [field.name for field in attrs.fields(spec.record_type) if field.name not in {"id", "state"}]
    fields = [(name, str | None, None) for name in names]
    name = f"{spec.record_type.__name__}Entry"
    return cast("type[_Entry]", msgspec.defstruct(name, fields, bases=(_Entry,), gc=False))


def _list_decoder(spec: RecordListSpec) -> msgspec.json.Decoder[Any]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("entries", GenericAlias(list, spec.entry_type)),
        ("count", int | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("EntryList", fields, rename={"entries": spec.key}))


@attrs.frozen(eq=False)
class RecordListSpec:
    """One list endpoint of the API.

    Args:
        path: The path of the endpoint.
        key: The field of the JSON body that holds the records.
        record_type: The class of the records. Its fields are read from the wire by their camelCase names.

    """

    path: str
    key: str
    record_type: type[Any]
    entry_type: type[_Entry] = attrs.field(
        init=False, repr=False, default=attrs.Factory(_entry_type, takes_self=True)
    )
    decoder: msgspec.json.Decoder[Any] = attrs.field(
        init=False, repr=False, default=attrs.Factory(_list_decoder, takes_self=True)
    )


@attrs.frozen
class Kind:
    """One kind of generation: what a request of it sends and where its records are listed.

    Args:
        name: The name of the kind, as ledgers and command lines show it.
        path: The path that the request is posted to.
        request_type: The class of the requests. Its `wire_names` has the fields of the JSON body.
        records: The list in which the records appear.
        single: True if a job's result is one record, False if it is a tuple of records.

    """

    name: str
    path: str
    request_type: type[Any]
    records: RecordListSpec
    single: bool


# The API's section "Videos": reels are listed among the videos.
VIDEOS = RecordListSpec("/api/external/videos", "videos", Video)

_REGISTER_VIDEOS = "/api/external/video-picker/register-videos"
_REGISTER_REEL = "/api/external/reel/register-reel"

KINDS: Mapping[str, Kind] = {
    "video": Kind("video", _REGISTER_VIDEOS, VideoRequest, VIDEOS, single=True),
    "reel": Kind("reel", _REGISTER_REEL, ReelRequest, VIDEOS, single=True),
}
"""Every kind by its name."""


def kind_of(request: object) -> Kind:
    """Return the kind of a request.

    Raises:
        InvalidRequestError: The value is not a request.

    """
    for kind in KINDS.values():
        if isinstance(request, kind.request_type):
            return kind
    names = ", ".join(kind.request_type.__name__ for kind in KINDS.values())
    raise errors.InvalidRequestError(f"A request must be one of {names}, not a {type(request).__name__}.")


# --- requests -------------------------------------------------------------------------------------


@attrs.frozen
class ApiRequest:
    """One request to the API, without what the connection adds: host, API key and user agent.

    Args:
        method: GET or POST.
        path: The path below the base URL.
        body: The bytes of the body; None sends no body.
        headers: The headers that belong to this request.

    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])


def encode_request(request: Request, idempotency_key: str) -> ApiRequest:
    """Return the POST that submits a request (the API's section "Videos").

    Args:
        request: The request. Its `ref` is not sent.
        idempotency_key: The value of the Idempotency-Key header.

    Raises:
        InvalidRequestError: The value is not a request.

    """
    kind = kind_of(request)
    values = {name: getattr(request, field) for field, name in request.wire_names.items()}
    body = {name: value for name, value in values.items() if value is not None} | dict(request.extra_body)
    headers = {"Content-Type": "application/json", IDEMPOTENCY_HEADER: idempotency_key}
    return ApiRequest("POST", kind.path, msgspec.json.encode(body), headers)


def list_request(spec: RecordListSpec, known: RecordList | None = None) -> ApiRequest:
    """Return the GET of a list.

    Args:
        spec: The list.
        known: An earlier list. If it has an ETag, the server may answer that nothing has changed (304). None
            asks for the whole list.

    """
    etag = None if known is None else known.etag
    return ApiRequest("GET", spec.path, headers={} if etag is None else {"If-None-Match": etag})


# --- responses ------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Response:
    """One HTTP response.

    Args:
        status: The HTTP status.
        headers: The headers by their lower-case names.
        body: The bytes of the body after decompression.
        redact: Replaces the secrets in a text. By default there are none.

    """

    status: int
    # The server may echo the API key, so tracebacks with locals must not show these.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    redact: Callable[[str], str] = attrs.field(default=str, repr=False)

    @property
    def correlation_id(self) -> str | None:
        """The server's id of the exchange, for its logs; None if the server sent none."""
        value = self.headers.get("x-correlation-id", "").encode("ascii", "replace").decode()
        return self.shorten(value.strip(), _MAX_EXCERPT) or None

    @property
    def date(self) -> datetime | None:
        """The server's clock when it answered, an aware datetime in UTC; None if the server sent none."""
        try:
            return _in_utc(parsedate_to_datetime(self.headers["date"]))
        except (KeyError, ValueError, TypeError, OverflowError):
            return None

    def excerpt(self) -> str:
        """Return the first 200 characters of the body, without secrets."""
        # A character has at most four bytes.
        text = self.body[: 4 * (_MAX_REDACTED + 1)].decode("utf-8", "replace")
        shown = self.shorten(text, _MAX_EXCERPT + 1)
        return shown if len(shown) <= _MAX_EXCERPT else f"{shown[:_MAX_EXCERPT]}..."

    def shorten(self, text: str, length: int) -> str:
        """Return the first characters of a text, without secrets.

        Args:
            text: A text of any length.
            length: The most characters to return, at most 8,192.

        """
        # Redacting comes before cutting, because a part of a key is not recognised. A very long text is cut
        # first all the same, to bound the time; then the end, which may be a part of a key, is left out.
        redacted = self.redact(text[:_MAX_REDACTED])
        end = len(redacted) if len(text) <= _MAX_REDACTED else max(len(redacted) - _LONGEST_KEY, 0)
        return redacted[: min(end, length)]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how long the server asks to wait (the API's section "Sibling").

    Returns:
        Seconds, at most an hour; None if the header is missing or is not a number of seconds.

    """
    value = headers.get("retry-after", "").strip()
    return min(float(value), _MAX_RETRY_AFTER) if _SECONDS.fullmatch(value) else None


# --- errors ---------------------------------------------------------------------------------------

_ERROR_TYPES: Mapping[int, type[errors.ApiError]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.InsufficientCreditsError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    429: errors.RateLimitError,
}


def parse_error(response: Response) -> errors.QameraError:
    """Return the error of a response whose status is not 200 (the API's section "Every request")."""
    status = response.status
    if not _CLIENT_ERROR <= status < _SERVER_ERROR + 100:
        return _invalid_response(
            response,
            f"The server answered with status {status}, which the API does not use.",
            "status 200, or an error with a status from 400 to 599",
        )
    text = _error_text(response)
    message = response.excerpt() if text is None else response.shorten(text, _MAX_MESSAGE)
    error_type = _ERROR_TYPES.get(status, errors.ApiError if status < _SERVER_ERROR else errors.ServerError)
    numbers = _CREDITS.search(message) if error_type is errors.InsufficientCreditsError else None
    credit = {} if numbers is None else {"required": int(numbers[1]), "available": int(numbers[2])}
    return error_type(
        message,
        status=status,
        correlation_id=response.correlation_id,
        retry_after=retry_after(response.headers),
        foreign=text is None,
        **credit,
    )


def is_definite_rejection(response: Response) -> bool:
    """Return whether a response to a POST proves that the request was not accepted.

    The body must have the API's shape, because a proxy may answer 407 or 429 after it has forwarded the
    request. 408 and 409 prove nothing in any shape: the server may have accepted the request before.
    """
    rejected = _CLIENT_ERROR <= response.status < _SERVER_ERROR and response.status not in {408, 409}
    return rejected and _error_text(response) is not None


def _error_text(response: Response) -> str | None:
    """Return the text of an error; None if the body has neither shape of "Every request" and "Sibling"."""
    error = _decode_object(response.body).get("error")
    if isinstance(error, str):
        return _text(error)
    for name in ("message", "message_i18n", "code"):
        value = _members(error).get(name)
        for text in (value, *_members(value).values()):
            if isinstance(text, str) and text:
                return _text(text)
    return None


def _invalid_response(
    response: Response, message: str, expected: str, record_ids: tuple[str, ...] = ()
) -> errors.InvalidResponseError:
    return errors.InvalidResponseError(
        message,
        status=response.status,
        expected=expected,
        excerpt=response.excerpt(),
        correlation_id=response.correlation_id,
        record_ids=record_ids,
    )


# --- receipts -------------------------------------------------------------------------------------


def parse_receipt(response: Response) -> Receipt:
    """Return the receipt of an accepted submission (the API's section "The receipt").

    Everything but the record ids may be missing or have another type; it is None then.

    Raises:
        InvalidResponseError: The body has no record ids, or one of them cannot be read. `record_ids` of the
            error has the readable ones.

    """
    fields = _decode_object(response.body)
    values = _items(fields.get("createdRecordIds"))
    record_ids = list(filter(_is_record_id, values))
    unique_ids = tuple(dict.fromkeys(record_ids))
    # No receipt of this API has an integer of thousands of digits, which is decoded as infinity.
    has_huge_number = math.inf in fields.values()
    if 0 < len(values) == len(record_ids) and not has_huge_number:
        credits_reserved = fields.get("creditsReserved")
        valid = type(credits_reserved) is int and 0 <= credits_reserved < _MAX_CREDITS
        return Receipt(
            record_ids=unique_ids,
            batch_id=_text(fields.get("batchId")),
            order_id=_text(fields.get("orderId")),
            reservation_id=_text(fields.get("reservationId")),
            credits_reserved=credits_reserved if valid else None,
            correlation_id=response.correlation_id,
        )
    if has_huge_number:
        unique_ids = ()
    # The body may contain the API key: no error has an id with it, and no traceback shows the decoded body.
    harmless = set(response.redact("\n".join(unique_ids)).split("\n"))
    unique_ids = tuple(record_id for record_id in unique_ids if record_id in harmless)
    del fields, values, record_ids
    raise _invalid_response(
        response, "The server's receipt cannot be read.", "a receipt with createdRecordIds", unique_ids
    )


def _is_record_id(value: object) -> TypeGuard[str]:
    # U+FFFD and lone surrogates replace characters that were lost in transmission.
    return isinstance(value, str) and bool(value.strip()) and "\ufffd" not in value and _text(value) == value


# --- lists ----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class RecordList:
    """One list of records as the server sent it: what a poll returns.

    Of entries with the same id the last one counts.

    Args:
        spec: The list.
        rules: What the status words mean.
        entries: The decoded entries by their ids, in the server's order.
        complete: False if the list's `count` says that records are missing from it.
        broken: The number of entries that are not records.
        response: The response that the list came in; None if the list did not come from the server.
        unchanged: True if the server's list is the same as the one before it.

    """

    spec: RecordListSpec = attrs.field(repr=False)
    rules: StatusRules = attrs.field(repr=False)
    entries: Mapping[str, _Entry] = attrs.field(repr=False)
    complete: bool
    broken: int
    response: Response | None = attrs.field(default=None, repr=False)
    unchanged: bool = False

    @classmethod
    def from_items(
        cls, items: Iterable[str], spec: RecordListSpec, rules: StatusRules, *, complete: bool
    ) -> RecordList:
        """Return a list of entries that `encode_items` encoded, in this process or another one.

        Args:
            items: The encoded entries. An unreadable entry counts as broken.
            spec: The list that contained the entries.
            rules: What the status words mean.
            complete: Whether that list was complete.

        """
        entries: dict[str, _Entry] = {}
        broken = 0
        for item in items:
            try:
                entry = msgspec.json.decode(item, type=spec.entry_type)
            except _UNREADABLE:
                broken += 1
            else:
                entries[entry.id] = entry
        return cls(spec, rules, entries, complete, broken)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.entries.values())

    @property
    def date(self) -> datetime | None:
        """The server's clock when it answered, an aware datetime in UTC; None if the server sent no date."""
        return None if self.response is None else self.response.date

    @property
    def etag(self) -> str | None:
        """The list's ETag; None if the server sent none, or an invalid one."""
        etag = "" if self.response is None else self.response.headers.get("etag", "")
        return etag if _ETAG.fullmatch(etag) else None

    def status(self, record_id: str) -> str | None:
        """Return the status word of a record, "" if it has none; None if the record is not in the list."""
        entry = self.entries.get(record_id)
        return None if entry is None else self._status(entry)[0]

    def get(self, record_id: str) -> Record | None:
        """Decode and return a record; None if the record is not in the list."""
        entry = self.entries.get(record_id)
        return None if entry is None else self._record(entry)

    def encode_items(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Return records as JSON text by their ids, for `from_items`; None for an id that is not listed."""
        texts: dict[str, str | None] = dict.fromkeys(ids)
        for record_id in texts.keys() & self.entries.keys():
            entry = self.entries[record_id]
            # Redacted here, because the process that decodes the text has no response with a redact function.
            redacted = msgspec.structs.replace(entry, status=self._status(entry)[0])
            texts[record_id] = msgspec.json.encode(redacted).decode()
        return texts

    def _status(self, entry: _Entry) -> tuple[str, JobState]:
        """Return the status word of an entry and its meaning."""
        status: str = getattr(entry, "status", None) or ""
        if len(status) > _MAX_STATUS:
            status = ""
        state = self.rules.state(status)
        if state is not None:
            return status, state
        # An unknown word is shown in a warning, and may contain the API key.
        return status if self.response is None else self.response.redact(status), JobState.PENDING

    def _record(self, entry: _Entry) -> Record:
        values = msgspec.structs.asdict(entry)
        if "status" in values:
            values["status"], values["state"] = self._status(entry)
        if "created_at" in values:
            values["created_at"] = _timestamp(values["created_at"])
        if values.get("video_url") == "":  # a video that is not finished
            values["video_url"] = None
        record: Record = self.spec.record_type(**values)
        return record


def parse_list(
    response: Response, spec: RecordListSpec, rules: StatusRules, known: RecordList | None = None
) -> RecordList:
    """Return the list in a response (the API's section "Videos" and its siblings).

    An entry without a readable id is counted as broken, a field of another
    type counts as absent, and unknown fields are ignored.

    Args:
        response: The response to `list_request`.
        spec: The list that was asked for.
        rules: What the status words mean.
        known: An earlier list. If the server's list is the same, the result shares its entries and nothing is
            decoded. None decodes in any case.

    Raises:
        InvalidResponseError: The body is not such a list, or has more than 150,000 records. A list that is
            not as documented may have at most 12 MiB and 300,000 values.
        QameraError: The status is neither 200 nor a 304 for `known`; see `parse_error`.

    """
    before = None if known is None else known.response
    if known is not None and before is not None:
        if response.status == _NOT_MODIFIED and known.etag is not None:
            headers = {**before.headers, **response.headers}
            return attrs.evolve(known, response=attrs.evolve(before, headers=headers), unchanged=True)
        if response.status == _OK and response.body == before.body:
            return attrs.evolve(known, response=attrs.evolve(response, body=before.body), unchanged=True)
    if response.status != _OK:
        raise parse_error(response)
    decoded = _decode_entries(response.body, spec)
    if decoded is None:
        raise _invalid_response(
            response,
            f"The server's list of {spec.key} cannot be read.",
            f'{{"{spec.key}": [{{"id": ...}}, ...]}} with at most {_MAX_RECORDS:,} records',
        )
    found, count, broken = decoded
    complete = count is None or count <= len(found) + broken
    entries = {entry.id: entry for entry in found}
    if "" in entries or any(map(str.isspace, entries)):
        broken += sum(not entry.id.strip() for entry in found)
        entries = {record_id: entry for record_id, entry in entries.items() if record_id.strip()}
    return RecordList(spec, rules, entries, complete, broken, response)


def _decode_entries(body: bytes, spec: RecordListSpec) -> tuple[list[_Entry], int | None, int] | None:
    """Decode a list.

    Returns:
        The entries, the value of `count`, and the number of entries that are not records. None if the body is
        not a list of records, or is too large.

    """
    if len(body) > _COUNTED_BODY and body.count(b"{") > _MAX_RECORDS:
        return None
    with contextlib.suppress(*_UNREADABLE):
        documented = spec.decoder.decode(body)
        return None if len(documented.entries) > _MAX_RECORDS else (documented.entries, documented.count, 0)
    tokens = sum(map(body.count, (b",", b"[", b"{", b"\\")))
    if len(body) > _MAX_LENIENT_BYTES or tokens > _MAX_LENIENT_TOKENS:
        return None
    fields = _decode_object(body)
    count = fields.get("count")
    if not isinstance(fields.get(spec.key), list) or count == math.inf:
        return None
    values = _items(fields[spec.key])
    id_name, *names = spec.entry_type.__struct_encode_fields__
    entries: list[_Entry] = []
    for value in map(_members, values):
        record_id = _text(value.get(id_name))
        if record_id is not None:
            entries.append(spec.entry_type(record_id, *(_text(value.get(name)) for name in names)))
    return entries, count if type(count) is int else None, len(values) - len(entries)


# --- JSON values ----------------------------------------------------------------------------------


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> float:
    # Python's own limit can be turned off, and the time to convert an int is quadratic.
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


_decoder = json.JSONDecoder(strict=False, parse_constant=_refuse, parse_int=_integer)


def _decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object; return an empty dict if the body is not one.

    Bytes that are not UTF-8 are replaced. Lone surrogates are accepted, because JavaScript writes them when
    it cuts a text. An integer of more than 1,000 digits becomes infinity.
    """
    try:
        value: object = _decoder.decode(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _members(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _text(value: object) -> str | None:
    """Return a text that can be encoded as UTF-8; None for any other value."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def _timestamp(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is UTC else _in_utc(moment)
    except (ValueError, OverflowError):
        return None


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
