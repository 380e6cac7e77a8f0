"""Patterns given as two functions, stage by stage."""
