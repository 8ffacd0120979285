"""Sphinx's settings: Markdown pages, the reference from docstrings, one navigation in `_toc.yml`."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from techflow_provider import __version__

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "airflow-provider-techflow"
version = release = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_external_toc"]
exclude_patterns = ["images"]
external_toc_path = "_toc.yml"

# Pages are read on the forge, too: they have no directives but those of the reference.
myst_heading_anchors = 3
# A changelog has the same headings for each version.
suppress_warnings = ["myst.duplicate_def"]

# Docstrings have single backticks around code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"TechFlow provider for Apache Airflow {version}"
html_copy_source = False
html_show_copyright = html_show_sphinx = False
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#0b5e8e", "color-brand-content": "#0b5e8e"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ef", "color-brand-content": "#7cc4ef"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_exclude = ".linenos, .gp, .go"


def add_inherited_parameters(
    _app: Sphinx, what: str, _name: str, documented: Any, _options: Any, text: list[str]
) -> None:
    """Describe a class whose parameters are those of its base with the base's words."""
    if what != "class" or any(line.startswith(":param") for line in text):
        return
    for base in documented.__mro__[1:]:
        described = inspect.cleandoc(base.__doc__ or "") if base.__module__.startswith("techflow_provider") else ""
        if ":param" in described:
            text += described[described.index(":param") :].splitlines()
            return


def setup(app: Sphinx) -> None:
    """Extend the reference."""
    app.connect("autodoc-process-docstring", add_inherited_parameters)
