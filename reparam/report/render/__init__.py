"""A report for people: tables in a terminal, one HTML page, Markdown for a pull request.

It takes an `Outcome` and, where it was measured, the latency of both models, and gives text. It never works out a
result of its own, never refers to anything outside the page, and never lets a name from a user's code become markup.
"""

from reparam.report.render.markdown import as_markdown
from reparam.report.render.page import as_html
from reparam.report.render.text import as_text

__all__ = ["as_html", "as_markdown", "as_text"]
