"""It stands in for DeepSpeed's launcher on one machine, without its seconds of imports.

stand_in_launcher.py PORT RANKS COMMAND...
"""

import os
import subprocess
import sys
import time


def main(port: str, world_size: str, command: list[str]) -> int:
    common = {"MASTER_PORT": port, "WORLD_SIZE": world_size, "CROSS_SIZE": "1"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(int(world_size)))
    ]
    while not any(rank.poll() for rank in ranks):
        if all(rank.poll() == 0 for rank in ranks):
            return 0
        time.sleep(0.05)
    code = next(rank.returncode for rank in ranks if rank.poll())
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        rank.wait()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
