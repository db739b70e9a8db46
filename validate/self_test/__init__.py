"""The suite tested by itself: every class of fault injected into clean runs, and silence where nothing is wrong.

`python -m validate.self_test` prints the outcome as Markdown: docs/self-test.md.
"""

from validate.self_test.run import run_self_test
from validate.self_test.text import self_test_markdown, self_test_text

__all__ = ["run_self_test", "self_test_markdown", "self_test_text"]
