"""The Intel 82540EM network card ("e1000")."""

from bivisor.platform.e1000.card import E1000

__all__ = ["E1000"]
