"""The operators and the analyses behind the lowerings."""
