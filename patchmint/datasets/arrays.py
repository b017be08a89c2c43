"""Types of arrays that the rooms of the inspection hand each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
