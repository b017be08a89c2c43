"""Grounding DINO (arXiv 2303.05499) over `groundingdino-py`'s modules: which boxes does a text talk about?"""
