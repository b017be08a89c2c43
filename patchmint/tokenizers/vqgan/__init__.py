"""VQGAN (CompVis/taming-transformers): an image as a grid of discrete codes, and back.

`arch` and `remap` need no torch.
"""
