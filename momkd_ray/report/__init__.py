"""The report of a cross-validation, one self-contained HTML page."""
