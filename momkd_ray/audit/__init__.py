"""Every input read once, and what is wrong with it listed."""
