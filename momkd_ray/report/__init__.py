"""One self-contained page about one cross-validation."""
