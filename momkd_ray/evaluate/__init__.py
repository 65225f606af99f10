"""A finished run's ensemble on an external, labelled cohort: predictions, statistics, tables, figures and a page."""
