"""`python -m data_pipeline`, which `surefoot prepare` runs: prepare raw files for training."""

import sys

if __name__ == "__main__":  # worker processes import this file again and need none of it
    from data_pipeline.prepare import main

    sys.exit(main(sys.argv[1:]))
