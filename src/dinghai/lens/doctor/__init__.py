"""The doctor: what went wrong in a run, by which evidence, why, and how to mend it."""
