"""What the training stages eat: one vocabulary, sequences, loaders and a patch selector."""
