# For type checkers in a checkout: the package itself stands in /losses. Not in the wheel.
from losses import *  # noqa: F403
