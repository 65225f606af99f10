"""Peers of MoMKD behind the same interface: one file each, written from the papers' equations."""
