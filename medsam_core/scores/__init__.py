"""DSC, NSD and what is made of them: case scores, intervals, comparisons."""
