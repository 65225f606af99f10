"""Several models on the same folds: trained as one run, compared with intervals, and written as tables and a page."""
