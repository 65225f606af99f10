"""The method: slide and omics encoders, momentum memory, losses. No Ray in here."""
