"""Measurements: each module writes a JSON with machine, versions, seeds, command and commit."""
