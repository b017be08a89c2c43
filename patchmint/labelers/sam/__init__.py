"""SAM (segment-anything): boxes to masks, with upstream's network and an inference of our own around it.

`arch` needs no torch.
"""
