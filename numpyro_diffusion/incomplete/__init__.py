"""Missing cells and noisy observations: imputation, and priors where no clean data exist."""

from .imputation import impute as impute
from .imputed import ImputationDiagnostics as ImputationDiagnostics
from .imputed import Imputations as Imputations
from .observations import ObservationsFit as ObservationsFit
from .observations import fit_prior_from_observations as fit_prior_from_observations
from .pooling import Pooled as Pooled
from .pooling import pool as pool
