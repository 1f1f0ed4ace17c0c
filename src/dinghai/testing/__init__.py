"""Proofs that any registered rule can be held to, built-in or your own. torch only.

    from dinghai.testing import prove_rule
    print(prove_rule("mine"))

Each law is a function too, of a subject (a rule with its parameters and a ratio level) and a batch; it raises an
AssertionError that names the rule, the law, the token and both numbers, and returns what it measured.
"""

from dinghai.testing.batches import Batch, grid_batch, random_batch
from dinghai.testing.failure import Measure
from dinghai.testing.invariance import (
    masked_row,
    masked_values,
    micro_batches,
    order_of_rows,
    padding,
    parts_of_sequences,
    same_batch_retold,
    same_decisions,
)
from dinghai.testing.laws import (
    gradient_is_finite_difference,
    inputs_are_only_read,
    never_nan,
    off_is_importance_sampling,
    on_policy_is_reinforce,
    precision_keeps_flags,
    stopped_is_zero_gradient,
    weight_is_gradient,
)
from dinghai.testing.proof import LAWS, Proof, Result, many_tokens, prove_rule
from dinghai.testing.subject import Subject, autograd_weight, rule_inputs, subjects

__all__ = [
    "LAWS",
    "Batch",
    "Measure",
    "Proof",
    "Result",
    "Subject",
    "autograd_weight",
    "gradient_is_finite_difference",
    "grid_batch",
    "inputs_are_only_read",
    "many_tokens",
    "masked_row",
    "masked_values",
    "micro_batches",
    "never_nan",
    "off_is_importance_sampling",
    "on_policy_is_reinforce",
    "order_of_rows",
    "padding",
    "parts_of_sequences",
    "precision_keeps_flags",
    "prove_rule",
    "random_batch",
    "rule_inputs",
    "same_batch_retold",
    "same_decisions",
    "stopped_is_zero_gradient",
    "subjects",
    "weight_is_gradient",
]
