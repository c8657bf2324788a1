"""Implementations of attention and experts that transformers downloads and runs."""

from __future__ import annotations


def is_kernel(key: str, value: object) -> bool:
    """Whether a key of a model's configuration names a kernel of a hub repository, such as kernels-community/flash-attn.

    Args:
        key: with the keys around it, a dot between them: `text_config.attn_implementation`.
        value: what it is set to.
    """
    named = any(kind in key for kind in ("attn_implementation", "experts_implementation"))
    return named and isinstance(value, str) and "/" in value
