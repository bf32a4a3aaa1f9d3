"""Pictures of data, chains, training, posteriors and diagnostics; every function draws on `ax` and returns it.

Without `ax` a figure is made.
"""

from .coding import rate_distortion as rate_distortion
from .draws import bands as bands
from .draws import corner as corner
from .draws import predictive as predictive
from .evidence import prior_comparison as prior_comparison
from .evidence import surprise as surprise
from .images import posterior as posterior
from .images import samples as samples
from .inference import effective_size as effective_size
from .inference import islands as islands
from .inference import maps as maps
from .inference import mutual_information as mutual_information
from .inference import ranks as ranks
from .report import report as report
from .training import history as history
from .training import log_prob as log_prob
from .training import schedule as schedule
from .trajectory import trajectory as trajectory
