"""Triggers of the TechFlow provider, and what they and the tasks that they resume have in common."""
