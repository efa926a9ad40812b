"""Sphinx settings: MyST pages, numpy docstrings, the furo theme."""

from importlib.metadata import version as installed_version

project = "fedcompress"
author = "The fedcompress authors"
copyright = "The fedcompress authors"
version = release = installed_version("fedcompress")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fedcompress {release}"
html_static_path = ["_static"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# Docstrings name things in single backticks without a role, as numpy does.
default_role = "code"
