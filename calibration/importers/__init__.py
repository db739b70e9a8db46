"""Importers: result files of other benchmark tools become run records, definitions converted, never assumed equal.

One module per tool; `definitions` holds what the metrics mean and how one definition becomes another, `fields` reads
values so that every complaint names file and field, `row` is the record being built, `tools` knows which is which.
"""
