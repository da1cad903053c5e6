"""Federated meta-learning behind one contract (learner.py): the only rooms of the agent that know torch."""
