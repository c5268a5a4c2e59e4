"""Types for the measurements of a step and for the results of the test samples."""
