"""What each operation means: a table of rules, one function per operation, and the walk that applies them.

Takes recorded nodes. Gives for each of them the value that it is (an `AffineConv` of an earlier tensor, or what may
still become one), or the reason why it is none. A rule sees its arguments alone: no graph, no other node, no cost. It
never decides what is worth folding; that is the plan's part. `table.py` says how a rule is written, `interpret.py` how
the walk goes.

Importing this package registers all rules.
"""

from reparam.rules import arithmetic, channels, conv, linear, norm, pad, pixels, pool, views
from reparam.rules.table import RULES, Case, Rule, Stack, Value

__all__ = ["RULES", "Case", "Rule", "Stack", "Value"]

_FAMILIES = (arithmetic, channels, conv, linear, norm, pad, pixels, pool, views)
