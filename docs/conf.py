"""The documentation site: ``nox -s docs`` builds it into ``docs/_build``, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import snakepit_trio

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "snakepit_trio"
author = "The snakepit_trio developers"
copyright = "2026, the snakepit_trio developers"
version = release = snakepit_trio.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "config_reference"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"snakepit_trio {release}"
html_static_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Links to files of the repository that are no pages: examples, benchmark records.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Names in docstrings that are no targets of this site are shown as code.
nitpicky = False
