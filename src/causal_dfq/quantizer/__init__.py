"""Fake quantization: the function, its initial ranges and its placement."""
