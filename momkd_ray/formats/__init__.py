"""Feature files: one reader a format."""
