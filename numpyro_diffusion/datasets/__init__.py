"""Data sets: generated ones with their laws, ones that packages carry, and readers of files that users have."""

from .cifar import cifar10 as cifar10
from .handwriting import Digits as Digits
from .handwriting import digits as digits
from .handwriting import mnist as mnist
from .handwriting import read_idx as read_idx
from .leaves import dead_leaves as dead_leaves
from .pictures import photographs as photographs
from .pictures import textures as textures
from .split import LabelledImages as LabelledImages
from .split import Patches as Patches
from .toy import heartbeat as heartbeat
from .toy import heartbeat_states as heartbeat_states
from .toy import swiss_roll as swiss_roll
from .toy import swiss_roll_log_prob as swiss_roll_log_prob
from .toy import swiss_roll_scale as swiss_roll_scale
