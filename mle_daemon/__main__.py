"""`python -m mle_daemon` is the command line of `mle-daemon`."""

from mle_daemon.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
