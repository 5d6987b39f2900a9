"""Pages made from saved records only, so that they can be drawn again."""

from __future__ import annotations
