"""The cohort: patients with labels, slides and omics, their folds, and the selection of genes."""
