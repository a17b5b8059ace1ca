"""Constants of the evaluation protocol, shared by all data sets and figures."""

SPLIT_SEED = 42
HELD_OUT = 0.1  # of the training images: validation and calibration
ENOUGH_TO_CALIBRATE = 100  # normals; with fewer, calibration is cross-fitted on all of them, with a warning
MAX_HELD_OUT = 1 / 3  # of a folder's normals, if a tenth would be too few for calibration
FOLDS = 5  # of cross-fitted calibration
MIN_NORMALS = 10
