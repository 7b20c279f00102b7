"""Bundled networks, their weights and the script that trained them."""
