"""Teacher predictions on disk: found by what an example holds, and refused where they are another teacher's."""

from distill.cache.alone import EachAlone
from distill.cache.header import Header, header_of
from distill.cache.reader import CachedEnsemble, CachedTeacher
from distill.cache.spec import CacheSpec
from distill.cache.writer import CacheSummary, write_cache

__all__ = [
    "CacheSpec",
    "CacheSummary",
    "CachedEnsemble",
    "CachedTeacher",
    "EachAlone",
    "Header",
    "header_of",
    "write_cache",
]
