"""Operators of the TechFlow provider."""
