"""Runnable examples: `python -m examples.demo` and the like; each has a `main()`.

demo.py                 four transformers models: eager, Inductor and fuser side by side
language_model.py       a model of transformers: a step of training, then decoding, by fp64
training.py             a small GPT trained with activation checkpointing
mixture_of_experts.py   a loop over experts in one graph
diffusion.py            residual blocks and attention of an image: what is proved, what pays
forgetful_attention.py  an attention that no library has, as one generated kernel
coverage.py             "every attention is fused" as a test

custom_pattern.py       a pattern of one's own: two functions
structural_pattern.py   one that two functions cannot say: a class
triton_pattern.py       one whose replacement is a Triton kernel, with its backward
cuda_pattern.py         one whose replacement is CUDA C++, compiled at run time
"""
