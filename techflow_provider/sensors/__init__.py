"""Sensors of the TechFlow provider."""
