"""``python -m pruning_lab.truth.join``: former name of ``pruning_lab.ground_truth.join``."""

from pruning_lab.ground_truth.join import main

if __name__ == "__main__":
    main()
