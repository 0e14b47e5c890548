"""Settings of Sphinx, with which `nox -s docs` builds the documentation. Warnings fail the build."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from postpress_async import __version__  # noqa: E402 - needs the line above

project = "postpress_async"
version = release = __version__
copyright = "the authors of postpress_async"  # noqa: A001 - Sphinx reads this name

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "py:obj"  # single backticks in docstrings are links to objects
smartquotes = False  # they would turn the -- of options into dashes

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_title = "postpress_async"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
