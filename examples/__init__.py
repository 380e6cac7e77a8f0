"""Runnable examples: `python -m examples.demo` and the like; each has a `main()`.

demo.py             four transformers models: eager, Inductor and fuser side by side
training.py         a small GPT trained with activation checkpointing
custom_pattern.py   a pattern of one's own
coverage.py         "every attention is fused" as a test
"""
