"""What all rooms of medsam_core use: settings, random numbers, geometry, files, the table of slices."""
