"""Puts `support.held_fold` into every Python process that has this folder on its path."""

from support.held_fold import hold

hold()
