"""All rules, registered: importing this package fills the table."""

from reparam.rules import arithmetic, channels, conv, linear, norm, pad, pixels, pool, views
from reparam.rules.table import RULES, Case, Rule, Stack, Value

__all__ = ["RULES", "Case", "Rule", "Stack", "Value"]

_FAMILIES = (arithmetic, channels, conv, linear, norm, pad, pixels, pool, views)
