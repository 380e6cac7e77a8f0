"""Mixture of experts.

mixture     the pattern: where weighted rows are added up
loop        the pattern: experts that write to the rows of their tokens, one after the other
written     what each turn of such a loop writes, to tokens or to choices
writes      what is written to, and when
selection   which tokens an expert is given
masks       which expert that is
chain       experts that are added up one after the other, with more beside them
alternatives  terms that are several experts: sums, and one of two by a mask
additions   what a chain of additions adds up
capacity    experts that tokens are sent to, as long as they have places
region      from experts and weights to what is put there
rows        from a sum to rows
taken       rows of all experts, of which those of the chosen ones are taken
weights     what rows are multiplied with
branches    experts that are written out one after the other
expert      from rows through one expert to tokens
products    rows times a matrix of the expert, in every spelling
space       which token and which expert a row is of
order       rows sorted by their experts
restoring   sorted rows that are put back, or added where their tokens are
support     which experts weights choose, and sums of weights
routing     whose weights are zero whatever the numbers are
choices     which indices are distinct, and which certainly name an expert
filling     what is written into tensors of one number
arange      tensors that count
terms       masks of zeros and ones, as sums of products
places      which place of an expert a token has, and that nobody else has it
router      the pattern: the best experts of each token, and their weights
ranking     from weights and choices up to the logits
grouping    experts in groups, of which the best are looked at
local       the pattern: experts whose rows come sorted
runs        the rows of each of them
"""

from . import local, loop, mixture, router  # register their patterns

__all__ = ["local", "loop", "mixture", "router"]
