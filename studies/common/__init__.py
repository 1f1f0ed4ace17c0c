"""What the studies share: the base that they vary, how they run, what they reckon and how their pages are written."""
