"""NumPyro distributions over diffusion trajectories and over the data they end in."""

from .posterior import DiffusionPosterior as DiffusionPosterior
from .prior import DiffusionPrior as DiffusionPrior
from .trajectory import ForwardTrajectory as ForwardTrajectory
from .trajectory import ReverseTrajectory as ReverseTrajectory
from .trajectory import joint_log_ratio as joint_log_ratio
