"""Triggers of the TechFlow provider, and the poll that they share."""
