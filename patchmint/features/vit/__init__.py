"""Frozen vision encoders (CLIP, SigLIP): an image as continuous patch features.

`arch` needs no torch; `model`, `build` and `encoder` do.
"""
