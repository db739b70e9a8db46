"""Print docs/self-test.md: python -m validate.self_test > docs/self-test.md"""

from simulator.cli.progress import ProgressBar
from validate.self_test import run_self_test, self_test_markdown

if __name__ == "__main__":
    with ProgressBar("injected faults") as bar:
        outcome = run_self_test(progress=bar)
    print(self_test_markdown(outcome), end="")
