"""What every room of medsam_core stands on: settings, random numbers, geometry, files, the table of slices."""
