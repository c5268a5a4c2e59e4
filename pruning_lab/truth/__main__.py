"""``python -m pruning_lab.truth``: former name of ``python -m pruning_lab.ground_truth``."""

from pruning_lab.ground_truth.__main__ import main

if __name__ == "__main__":
    main()
