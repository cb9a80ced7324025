"""Hooks for MkDocs in `make docs`: run the notebook, and refuse pages that load from other hosts."""

from __future__ import annotations

import os
import re
import tempfile

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOK = "quickstart.ipynb"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # in the kernel; tqdm asks for widgets, which are not used
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'> ]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'> ]*"""
    r"""|<\w+ class="mermaid">"""  # the theme loads a script to draw it
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Runs the notebook in a temporary folder and adds its page: text, code and output."""
    notebook = files.get_file_from_path(NOTEBOOK)
    cells = nbformat.read(notebook.abs_src_path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run = ExecutePreprocessor(timeout=600, extra_arguments=["--log-level=ERROR"])
        run.preprocess(cells, {"metadata": {"path": folder}})
    text, resources = MarkdownExporter().from_notebook_node(cells)
    text += f"\n[The notebook]({NOTEBOOK})\n"
    files.append(File.generated(config, "quickstart.md", content=text))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, name, content=picture))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Raises PluginError for a script, style sheet or picture from another host."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    return output
