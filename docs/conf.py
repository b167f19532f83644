"""Configuration of the documentation.

Two environment variables change the build: `SCGDE_DOCS_EXECUTE=1` runs every tutorial, and `SCGDE_DOCS_ONLINE=1` links to the
documentation of other packages, which needs the network.
"""

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.ext.napoleon import NumpyDocstring

HERE = Path(__file__).parent
ONLINE = os.environ.get("SCGDE_DOCS_ONLINE", "0") not in {"", "0"}
EXECUTE = os.environ.get("SCGDE_DOCS_EXECUTE", "0") not in {"", "0"}

project = "scgde"
author = "scgde developers"
copyright = "2026, scgde developers"
release = version = installed_version("scgde")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
templates_path = ["_templates"]

# Links to other packages need their inventories, and unresolved names are errors only where those are at hand.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
if ONLINE:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# A module page lists what the module exports, and nothing else.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force" if EXECUTE else "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_merge_streams = True
# A notebook without outputs is shown without them; only an executed build has them all.
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = "scgde"
html_theme_options = {
    "path_to_docs": "docs",
    "repository_branch": "main",
    "repository_url": "https://github.com/scgde/scgde",
    "use_repository_button": True,
}


def _parse_returns_section(self: NumpyDocstring, section: str) -> list[str]:
    """Take "Returns" as prose. Types stand in signatures, so the first line is no type, as napoleon would have it."""
    lines = self._dedent(self._consume_to_next_section())
    return self._format_block(":returns: ", self._fix_field_desc(lines))


NumpyDocstring._parse_returns_section = _parse_returns_section  # type: ignore[method-assign]


def copy_tutorials() -> None:
    """Copy ``../tutorials`` into the source tree of the documentation and write its table of contents."""
    target = HERE / "tutorials"
    sources = sorted(path for path in (HERE.parent / "tutorials").glob("*") if path.suffix in {".ipynb", ".md"})
    sources = [path for path in sources if path.name.lower() != "readme.md"]
    target.mkdir(exist_ok=True)
    for stale in set(target.iterdir()) - {target / path.name for path in sources} - {target / "index.md"}:
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for path in sources:
        # Links are written for the folder `tutorials`, which stands beside `docs` and not in it.
        text, copy = path.read_text().replace("](../docs/", "](../"), target / path.name
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    if sources:
        entries = "\n".join(path.stem for path in sources)
        body = (
            f"Each page is a notebook from the folder `tutorials`.\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
        )
    else:
        body = "There are no tutorials yet. The [user guide](../user_guide.md) has short examples.\n"
    text = f"# Tutorials\n\n{body}"
    index = target / "index.md"
    if not index.exists() or index.read_text() != text:
        index.write_text(text)


copy_tutorials()
