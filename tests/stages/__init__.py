"""Stages: tests that need more than a Debian machine and take minutes. `make` has a target for each; CI has none.

`engine` starts a Docker engine of its own, `bases` makes the images that public ones are replaced with where
no registry can be reached, `report` prints what a stage does while it does it.
"""
