from collections.abc import Sequence
from typing import Any

import numpy as np

def add(total: np.ndarray[Any, Any], rows: Sequence[np.ndarray[Any, Any]], shares: Sequence[float], start: int, end: int) -> None: ...
