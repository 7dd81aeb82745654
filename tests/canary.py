"""An API key that must not be shown anywhere, and a search for it."""

from pathlib import Path
from urllib.parse import quote

SECRET = "S3CRET/canary+0123456789"  # noqa: S105 - a canary
KEY = f"mk_live_canary.{SECRET}"
FORMS = [
    SECRET,
    quote(SECRET),
    quote(SECRET, safe=""),
    SECRET.replace("/", "\\/"),
    SECRET.replace("/", "\\u002f"),
]


def local_variables(error):
    """Yield the place and repr of each local variable in the frames of an error, its context and its cause.

    The frames of tests are left out: a test knows the secrets.
    """
    found, left = set(), [error]
    while left:
        error = left.pop()
        if error is None or id(error) in found:
            continue
        found.add(id(error))
        left += [error.__context__, error.__cause__]
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            if Path(__file__).parent not in Path(code.co_filename).parents:
                for name, value in traceback.tb_frame.f_locals.items():
                    yield f"{code.co_filename}:{code.co_name}:{name}", _repr(value)
            traceback = traceback.tb_next


def _repr(value):
    try:
        return repr(value)
    except Exception as error:
        return repr(error)


class Search:
    """A search for the key. As a control, it also searches each place for a text that must be there.

    Args:
        known: The text that must be there, by the name of the place.

    ``found`` has the places that contain the key, ``blind`` the places that lack their known text.
    """

    def __init__(self, known):
        self._known = {place: text.lower().encode() for place, text in known.items()}
        self.found = set()
        self.blind = set(known)

    def look(self, place, thing):
        """Search bytes or a text that was written to a place."""
        content = (thing if isinstance(thing, bytes) else thing.encode("utf-8", "backslashreplace")).lower()
        if any(form.lower().encode() in content for form in FORMS):
            self.found.add(place)
        if self._known[place] in content:
            self.blind.discard(place)

    def look_into(self, place, folder):
        """Search all files of a folder and of its subfolders."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.look(place, path.read_bytes())

    def look_at(self, place, error):
        """Search the texts and attributes of an error, its causes and contexts."""
        while error is not None:
            self.look(place, f"{error!r} {error} {error.args!r} {vars(error)!r}")
            error = error.__cause__ or error.__context__
