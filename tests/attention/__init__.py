"""Attention as people write it, as they nearly write it, and as a generator writes it."""
