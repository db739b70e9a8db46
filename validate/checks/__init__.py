"""The checks of the suite: one module per subject, each with `check(evidence)` that yields findings."""
