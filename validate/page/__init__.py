"""The verdict for people: one self-contained HTML page, and the same in Markdown with its figures beside it."""

from validate.page.write import write_page

__all__ = ["write_page"]
