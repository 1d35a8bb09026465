"""What has to stand before jax starts: eight virtual CPU devices, and a cache for what is compiled again."""

import atexit
import os
import shutil
import signal
import tempfile

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # By `nohup`, say. The runs that tests start would inherit that, and not a handler.
    signal.signal(signal.SIGHUP, lambda *_: None)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# The runs that tests start inherit it. One a worker: jax does not write it atomically.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxseg-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
import pytest

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # all eight, before a test sets XLA_FLAGS for the runs that it starts


@pytest.fixture
def rng():
    return np.random.default_rng(0)
