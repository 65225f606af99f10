"""Generated cohorts."""
