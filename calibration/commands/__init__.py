"""Sub-commands of `calibrate`, one file each; `register(group)` adds one to the program."""
