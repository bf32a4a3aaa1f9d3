"""Models of the `diffusers` library, read and written without it and without torch."""

from .folder import read_process as read_process
from .folder import write_process as write_process
