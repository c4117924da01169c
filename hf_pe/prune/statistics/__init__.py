"""Statistics of calibration data for the units of an axis."""
