"""Sphinx configuration; ``nox -s docs`` builds the pages and runs every example in them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import ipcbus  # noqa: E402  the path comes first, for the generator beside this file

project = "ipcbus"
author = "The ipcbus authors"
project_copyright = "The ipcbus authors"
version = release = ipcbus.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

nitpicky = True
# The pages stand alone: no inventory of another project is fetched, so names of the standard library and of drivers are
# not links. Names of ours are, and one that does not exist fails the build.
nitpick_ignore_regex = [
    ("py:.*", r"(?!ipcbus).*"),
    # Not public:
    ("py:.*", r"ipcbus\.(endpoint|codec|registry\.T$|requests\.(future|callback)\.[PT]$).*"),
    ("py:.*", r"ipcbus\.(transport\._Link|plumbing\.forks\._Closing)"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"ipcbus {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _align_rules(_app: Sphinx, _what: str, name: str, _obj: object, _options: Any, lines: list[str]) -> None:
    """Give the numbers of one digit the indentation of those of two, so that the rules are one list."""
    if name == "ipcbus.transport":
        lines[:] = [re.sub(r"^ (\d)\. ", r"\1.  ", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _align_rules)
