"""Run the notebook, and keep what it prints in it: `make outputs`."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "tour.ipynb"


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel, and nothing of when or how long it ran."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=600, record_timing=False, resources=resources)
        return tidied(client.execute())


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """With what each cell printed as one text, without stderr and the kernel's own version."""
    for cell, text in zip(_cells(notebook), printed(notebook), strict=True):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell printed."""
    return [
        "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in _cells(notebook)
    ]


def _cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
    nbformat.write(executed(nbformat.read(NOTEBOOK, as_version=4)), NOTEBOOK)
