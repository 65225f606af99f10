"""Looks at a folder of tables and feature files, and writes a configuration for it."""
