"""Missing cells and noisy observations: imputation, and priors where no clean data exist."""

from .imputation import ImputationDiagnostics as ImputationDiagnostics
from .imputation import Imputations as Imputations
from .imputation import impute as impute
from .pooling import Pooled as Pooled
from .pooling import pool as pool
