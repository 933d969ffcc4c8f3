//! A `libnvidia-ml.so.1` whose GPUs come from a file.
