"""How the documentation is built: ``sphinx-build -W -n docs build/docs``.

-W makes each warning an error, -n makes one of each reference that leads nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import qamera_async

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.domains.python import PythonDomain
    from sphinx.environment import BuildEnvironment

project = "qamera-async"
author = "the qamera-async developers"
release = version = qamera_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures"]

html_theme = "furo"
html_title = f"qamera-async {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_copy_source = False

myst_heading_anchors = 4

default_role = "code"  # what stands in `these` in a docstring
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

# Nothing is fetched when this is built, so what others document leads nowhere: the standard library, aiohttp.
nitpick_ignore_regex = [
    (r"py:class", r"(?!qamera_async\.)[a-z_]+\..*"),
    (r"py:class", r"Path|Settled|Any|Self|Callable.*|Iterable|Mapping|Sequence|Async\w+|Generator|datetime"),
    (r"py:exc", r"[a-z]+\.\w+"),
]

_plain: dict[str, list[str]] = {}


def _keep(_: Sphinx, what: str, name: str, __: object, ___: object, lines: list[str]) -> None:
    if what == "property":
        _plain[name] = lines[:]


def _give_back(_: Sphinx, __: str, name: str, ___: object, ____: object, lines: list[str]) -> None:
    # Napoleon takes the words before a colon for a property's type.
    lines[:] = _plain.pop(name, lines)


def _public(app: Sphinx, env: BuildEnvironment, node: pending_xref, inside: Element) -> Element | None:
    """Lead a name as it is known in its room, or by itself, to where it is documented."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in qamera_async.__all__:
        return None
    python = cast("PythonDomain", env.get_domain("py"))
    target = f"qamera_async.{name}"
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, inside)


def setup(app: Sphinx) -> None:
    """Add what the extensions lack."""
    app.connect("autodoc-process-docstring", _keep, priority=400)
    app.connect("autodoc-process-docstring", _give_back, priority=600)
    app.connect("missing-reference", _public)
