"""Who is in the study: patients, labels, slides and omics, their folds, and the genes that teach."""
