"""`python -m data_pipeline`, which `surefoot prepare` runs: prepare raw files for training."""

import signal
import sys

if __name__ == "__main__":  # worker processes import this file again and need none of it
    from data_pipeline.preparing.command import main

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
