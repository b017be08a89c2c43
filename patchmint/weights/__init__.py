"""The official checkpoints: which there are, where they lie, how they come, and how they are opened safely.

Only `patchmint.weights.loading` imports torch.
"""
