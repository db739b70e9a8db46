"""Laws that the simulator has to keep on every GPU that ships: `validate simulator`, docs/laws.md.

`law` says what a law is, `subjects` what it is held against, `bounds` what a data sheet allows, `runs` the traffic that
several laws look at; `unloaded`, `saturation`, `load_curve`, `monotone`, `conservation`, `memory_laws` and `halves` are
the families; `suite` holds all of them against all, `report` and `page` show what came of it.
"""
