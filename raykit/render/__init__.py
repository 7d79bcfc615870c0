"""The two faces of a view that need no page: plain text, and the static HTML that a saved notebook keeps.

Both are pure, and draw what the view says: what is unknown is written as unknown, never as zero.
"""

from raykit.render.html import to_html
from raykit.render.text import to_text

__all__ = ["to_html", "to_text"]
