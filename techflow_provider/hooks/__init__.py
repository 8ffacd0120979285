"""Hooks of the TechFlow provider."""
