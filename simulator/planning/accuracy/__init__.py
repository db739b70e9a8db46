"""Accuracy without inventing it: tables that a user gives, or what follows from the success of single samples."""
