"""ConnectionSettings, Secret and api_origin: what is accepted, and what is never shown."""

import copy
import pickle
import ssl
from urllib.parse import quote

import aiohttp
import pytest
from canary import FORMS, KEY, SECRET
from yarl import URL

from qamera_async import ConfigurationError, ConnectionFailedError
from qamera_async._transport import ConnectionSettings, Secret, api_origin

PLAIN_KEY = "mk_live_a.bcdefgh"
VARIABLES = ("QAMERA_API_KEY", "QAMERA_BASE_URL", *(f"{n}_proxy" for n in ("http", "https", "no", "all")))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def build(key=PLAIN_KEY, proxy=None, **options):
    return ConnectionSettings(api_key=Secret(key), proxy=Secret(proxy), **options)


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [repr, str, "{}".format, "%r".__mod__, lambda secret: repr([secret])])
def test_secret_is_not_shown(show):
    assert "hidden" not in show(Secret("hidden"))


@pytest.mark.parametrize("save", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_is_not_pickled_or_copied(save):
    with pytest.raises(TypeError):
        save(Secret("hidden"))


def test_settings_show_neither_key_nor_password_and_do_not_pickle():
    settings = build(KEY, "http://me:passw0rd@proxy.internal:3128", headers={"X-Gateway": "t0ken"})

    for hidden in (SECRET, "passw0rd", "t0ken"):
        assert hidden not in repr(settings)
    with pytest.raises(TypeError):
        pickle.dumps(settings)


# --- the key ------------------------------------------------------------------------------------


def test_key_comes_from_the_argument_before_the_environment(monkeypatch):
    monkeypatch.setenv("QAMERA_API_KEY", "mk_live_a.fromenvironment")

    assert build().api_key.value == PLAIN_KEY
    assert build(None).api_key.value == "mk_live_a.fromenvironment"


@pytest.mark.parametrize("key", [None, ""])
def test_missing_key_names_both_places(key):
    with pytest.raises(ConfigurationError, match=r"api_key=.*QAMERA_API_KEY"):
        build(key)


@pytest.mark.parametrize("key", [f"{KEY} ", f"{KEY}\n", f" {KEY}", KEY.encode(), [KEY], f"{KEY}\u043a", 3])
def test_invalid_key_is_refused_and_not_shown(key):
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        build(key)

    assert SECRET not in str(refused.value)


def test_invalid_key_of_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("QAMERA_API_KEY", f"{KEY} ")
    with pytest.raises(ConfigurationError, match="QAMERA_API_KEY") as refused:
        build(None)

    assert SECRET not in str(refused.value)


def test_callable_key_tells_to_build_a_session_per_key():
    with pytest.raises(ConfigurationError, match="new session per key"):
        build(lambda: KEY)


def test_key_of_an_unusual_form_is_logged_without_the_key(caplog):
    build("an-unusual-key")
    build(KEY)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "an-unusual-key" not in caplog.text


# --- the base URL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base_url", "origin"),
    [
        (None, "https://app.qamera.ai", "https://app.qamera.ai"),
        ("https://h.example/qamera/", "https://h.example/qamera", "https://h.example"),
        ("HTTPS://H.example:8443", "https://h.example:8443", "https://h.example:8443"),
        ("http://127.0.0.1:8700", "http://127.0.0.1:8700", "http://127.0.0.1:8700"),
        ("http://localhost", "http://localhost", "http://localhost"),
        ("http://[::1]:8700", "http://[::1]:8700", "http://[::1]:8700"),
        ("http://api.localhost:1", "http://api.localhost:1", "http://api.localhost:1"),
    ],
)
def test_base_url_is_accepted(url, base_url, origin):
    settings = build(base_url=url)

    assert (settings.base_url, settings.origin) == (base_url, origin)
    assert api_origin(url) == origin


def test_base_url_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("QAMERA_BASE_URL", "https://h.example:8443/x")

    assert build().base_url == "https://h.example:8443/x"
    assert api_origin() == "https://h.example:8443"
    assert build(base_url="https://other.example").base_url == "https://other.example"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("127.0.0.1:8700", "'127.0.0.1:8700'"),
        ("http://h.example", "'http://h.example'"),
        ("http://h.example:80/", "'http://h.example:80/'"),
        ("ftp://h.example", ""),
        ("h.example", ""),
        ("", ""),
        ("https://", ""),
        ("https://h:0", "'https://h:0'"),
        ("https://h:99999", "'https://h:99999'"),
        ("http://[::1", ""),
        ("https://h\r\nx", ""),
        ("https://h x", ""),
        ("https://h.example?a=b", ""),
        ("https://h.example#a", ""),
        (f"https://me:{SECRET}@h.example", ""),
        (f"http://{SECRET}@h.example", ""),
        (KEY, ""),
        (f"https://h.example?key={KEY}", ""),
        (3, ""),
        (KEY.encode(), ""),
    ],
)
def test_invalid_base_url_is_shown_only_where_it_can_hold_no_secret(url, shown):
    with pytest.raises(ConfigurationError, match="base_url") as refused:
        build(base_url=url)

    assert shown in str(refused.value)
    assert SECRET.lower() not in str(refused.value).lower()


def test_invalid_base_url_of_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("QAMERA_BASE_URL", "127.0.0.1:8700")
    for refuse in (build, api_origin):
        with pytest.raises(ConfigurationError, match=r"QAMERA_BASE_URL.*127\.0\.0\.1:8700"):
            refuse()


def test_http_to_another_host_needs_allow_http():
    with pytest.raises(ConfigurationError, match="allow_http=True"):
        build(base_url="http://cluster.internal:8080")

    assert (
        build(base_url="http://cluster.internal:8080", allow_http=True).origin
        == "http://cluster.internal:8080"
    )
    assert api_origin("http://cluster.internal", allow_http=True) == "http://cluster.internal"


# --- other settings -----------------------------------------------------------------------------


def test_valid_settings_are_kept():
    context, traces = ssl.create_default_context(), [aiohttp.TraceConfig()]
    settings = build(
        proxy="http://me:passw0rd@proxy.internal:3128",
        trust_env=True,
        ssl_context=context,
        trace_configs=traces,
        headers={"X-Gateway": "g", "traceparent": "00-1"},
    )

    assert settings.ssl_context is context
    assert settings.trace_configs == tuple(traces)
    assert settings.headers == {"X-Gateway": "g", "traceparent": "00-1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow_http", "no"),
        ("trust_env", 1),
        ("ssl_context", "x"),
        ("ssl_context", False),
        ("trace_configs", 5),
        ("trace_configs", [object()]),
        *(
            ("proxy", value)
            for value in (3, "", "garbage", "proxy:3128", "socks5://x:1", "http://[", "http://")
        ),
        *(
            ("headers", value)
            for value in ("X: 1", [("X-A", "1")], {1: "1"}, {"X-A": 1}, {"X A": "1"}, {"": "1"})
        ),
        *(("headers", {"X-A": value}) for value in ("1\r\nX-B: 2", "1\n", "\x00", "\u00e9", "\x7f")),
        ("headers", {"X-A\r\nX-B": "1"}),
    ],
)
def test_invalid_setting_is_refused_by_its_name(name, value):
    with pytest.raises(ConfigurationError, match=name):
        build(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        *(
            "X-Api-Key",
            "x-api-key",
            "Authorization",
            "Proxy-Authorization",
            "Host",
            "Connection",
            "Keep-Alive",
        ),
        *(
            "Content-Length",
            "Content-Type",
            "Content-Encoding",
            "Transfer-Encoding",
            "TE",
            "Trailer",
            "Upgrade",
        ),
        *("Idempotency-Key", "Expect", "Accept", "If-None-Match", "Range"),
    ],
)
def test_header_of_the_library_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"headers must not set {name}"):
        build(headers={name: SECRET})


def test_header_value_is_not_shown():
    with pytest.raises(ConfigurationError) as refused:
        build(headers={"X-Token": f"{SECRET}\n"})

    assert "X-Token" in str(refused.value)
    assert SECRET not in str(refused.value)


# --- redaction ----------------------------------------------------------------------------------

MORE_FORMS = [
    quote(SECRET, safe="").lower(),
    SECRET.replace("+", "\\u002B").replace("/", "%2F"),
    SECRET.upper(),
]


@pytest.mark.parametrize("form", [*FORMS, *MORE_FORMS, KEY, quote(KEY)])
def test_key_is_redacted_in_every_form(form):
    redacted = build(KEY).redact(f"before {form} after {form}")

    assert redacted in {"before *** after ***", "before mk_live_canary.*** after mk_live_canary.***"}


@pytest.mark.parametrize("char", [chr(code) for code in range(0x21, 0x7F)])
def test_every_character_of_a_key_may_be_escaped(char):
    redact = build(f"mk_live_a.secret{char}secret").redact
    forms = [char, f"%{ord(char):02X}", f"%{ord(char):02x}", f"\\u{ord(char):04x}", f"\\{char}"]

    assert {redact(f"secret{form}secret") for form in forms} == {"***"}


def test_short_secret_part_is_redacted_in_the_whole_key_only():
    redact = build("mk_live_a.b").redact

    assert redact("a big mk_live_a.b") == "a big ***"


# --- the proxy of the environment ---------------------------------------------------------------


async def proxy_of(settings):
    return await settings.proxy_for(URL("https://h.example/x"))


async def test_proxy_of_the_environment_is_used_only_with_trust_env(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pw@proxy.example:3128")

    assert await proxy_of(build()) is None
    assert await proxy_of(build(trust_env=True)) == "http://me:pw@proxy.example:3128"
    assert await proxy_of(build(proxy="http://other:1", trust_env=True)) == "http://other:1"


async def test_no_proxy_exempts_a_host(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "h.example")

    assert await proxy_of(build(trust_env=True)) is None


async def test_socks_proxy_of_the_environment_is_not_used(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")

    assert await proxy_of(build(trust_env=True)) is None


@pytest.mark.parametrize("proxy", ["http://[", "http://", "http://me:S3CRET@host:99999", "http://S3CRET@["])
async def test_invalid_proxy_of_the_environment_is_a_permanent_error(monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConnectionFailedError) as failed:
        await proxy_of(build(trust_env=True))

    assert failed.value.permanent
    assert "S3CRET" not in str(failed.value)
