"""The sub-commands of `validate`, one module each."""
