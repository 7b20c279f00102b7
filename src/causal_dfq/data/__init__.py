"""Readers of labelled images, for evaluation only."""
