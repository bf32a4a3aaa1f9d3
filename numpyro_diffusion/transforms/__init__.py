"""Coordinates in which data are modelled, beside NumPyro's own transforms."""

from .axes import PrincipalAxes as PrincipalAxes
from .bounded import Between as Between
from .bounded import Bounded as Bounded
