"""Failures that operators cause or meet, each made for real, and the line that they see. The table: `ops/ERRORS.md`."""
