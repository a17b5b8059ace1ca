"""The numbers of the protocol, which every data set and every figure share."""

SPLIT_SEED = 42
HELD_OUT = 0.1  # of the training images: validation and calibration
ENOUGH_TO_CALIBRATE = 100  # normals; with fewer, all of them are calibrated on in turn, and a warning says so
MAX_HELD_OUT = 1 / 3  # of a folder's normals, where a tenth would be too few to calibrate on
FOLDS = 5  # that all normals are then left out in
MIN_NORMALS = 10
