"""How the documentation is built: ``sphinx-build -W -n docs build/docs``.

-W makes each warning an error, -n warns of each reference that can't be resolved.
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

default_role = "code"  # for `single backticks` in docstrings
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

# The build fetches nothing, so references to the standard library and to aiohttp can't be resolved.
nitpick_ignore_regex = [
    (r"py:class", r"(?!qamera_async\.)[a-z_]+\..*"),
    (r"py:class", r".*\.(DefaultTimeout|T)"),
    (r"py:class", r"Path|Settled|Any|Self|Callable.*|Iterable|Mapping|Sequence|Async\w+|Generator|datetime"),
    (r"py:exc", r"[a-z]+\.\w+"),
]

PUBLIC_MODULES = (
    "qamera_async",
    "qamera_async.events",
    "qamera_async.ledger",
    "qamera_async.report",
    "qamera_async.download",
)

_plain: dict[str, list[str]] = {}


def _keep(_: Sphinx, what: str, name: str, __: object, ___: object, lines: list[str]) -> None:
    if what == "property":
        _plain[name] = lines[:]


def _restore(_: Sphinx, __: str, name: str, ___: object, ____: object, lines: list[str]) -> None:
    # Napoleon would take the text before a colon for the type of a property.
    lines[:] = _plain.pop(name, lines)


def _public(app: Sphinx, env: BuildEnvironment, node: pending_xref, inside: Element) -> Element | None:
    """Resolve a bare name, or a name in an internal module, to the public name that is documented."""
    if node.get("refdomain") != "py":
        return None
    python = cast("PythonDomain", env.get_domain("py"))
    name = node.get("reftarget", "").rpartition(".")[2]
    for module in PUBLIC_MODULES:
        if (target := f"{module}.{name}") in python.objects:
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, inside)
    return None


def setup(app: Sphinx) -> None:
    """Connect the handlers of this file."""
    app.connect("autodoc-process-docstring", _keep, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
    app.connect("missing-reference", _public)
