"""What transformers calls a model's key-value cache, as an argument and as a field of outputs:
`past_key_values` up to 5.23, `cache` since 5.24, which takes the old name until 5.40.
"""

from __future__ import annotations


def cache_name() -> str:
    """The name in the transformers that is installed."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    fields = BaseModelOutputWithPast.__dataclass_fields__
    return "cache" if "cache" in fields else "past_key_values"
