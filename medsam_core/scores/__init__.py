"""DSC and NSD; case scores, intervals and comparisons of them."""
