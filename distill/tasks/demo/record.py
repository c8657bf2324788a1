"""Who or what fills the placeholder? Everything named in the passage is a candidate."""

from typing import Any

from .world import Cast

PASSAGES = ("{woman} met {man} in {city} and bought a {thing}.",)
QUERIES = ()


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    return []
