"""Statistics on calibration rows from which the units of an axis are scored and refitted."""
