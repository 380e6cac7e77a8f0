"""Renderers of the record of a compile: text, JSON."""
