"""The daemon: takes what clients log, keeps it in a journal and writes it as HDF5 files."""

from mle_client import __version__ as __version__
