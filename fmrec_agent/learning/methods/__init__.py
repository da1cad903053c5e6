"""The methods, one file each, stated by their equations: what a draw yields, and how a round uses it (gradient_learner.py)."""
