"""An outcome for people: in a terminal, as a page, as Markdown."""

from reparam.report.render.markdown import as_markdown
from reparam.report.render.page import as_html
from reparam.report.render.text import as_text

__all__ = ["as_html", "as_markdown", "as_text"]
