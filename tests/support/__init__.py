"""What several test modules share."""

import os

# small arrays take longer on several threads, and much longer where pytest's workers share the cores; read by NumPy and
# PyTorch as they are imported, and by processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
