"""Emu3's tokenizer (arXiv 2409.18869): as many codes as the image's size makes, one for each 8 x 8 pixels."""
