"""From source files to slice stores, index, releases and pixel statistics."""
