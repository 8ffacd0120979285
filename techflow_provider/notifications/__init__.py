"""Notifiers of the TechFlow provider."""
