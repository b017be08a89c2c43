"""Checkpoints by name, official ones and the demo's: where they lie, how they come, how they are opened safely.

Only `patchmint.weights.loading` imports torch.
"""
