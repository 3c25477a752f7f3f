"""Defaults of serving, for configurations, the command line and parameters alike. This module imports nothing."""

HOST = "127.0.0.1"
PORT = 8000
MOST_THREADS = 1024  # of a policy; OpenMP ends the process where it cannot make as many as it is asked for
MOST_CLIENTS = 50  # at a time
HORIZON = 8  # actions executed of each chunk
ENSEMBLE = "none"
ENSEMBLE_CHUNKS = 7  # CogACT's own for WidowX
MOST_ENSEMBLE_CHUNKS = 100
MAX_BATCH = 8  # requests predicted together
MOST_BATCH = 32  # of them; as many of the longest instructions fit into the socket to the worker
BATCH_TOLERANCE = 0.0  # normalised units by which that may change a chunk
LOAD_TIMEOUT_S = 900.0  # seven billion parameters take minutes to load from a slow disk
PREDICTION_TIMEOUT_S = 30.0
INSTALL = "pip install '.[serve]' in the checkout of sqap-vla-ros"  # what serving and its client need
REACH_TIMEOUT_S = 30.0  # that a server has to be there at all, for somebody who waits at a terminal
