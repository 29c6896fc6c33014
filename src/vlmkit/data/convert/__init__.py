"""Annotations in other tools' shapes, made into a LLaVA manifest: read a row, rewrite it, prove it, write it."""

from vlmkit.data.convert.conversion import Conversion, Converted
from vlmkit.data.convert.formats import FORMATS

__all__ = ["FORMATS", "Conversion", "Converted"]
