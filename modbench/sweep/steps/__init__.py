"""Work of a job for its run, one file each: audit of its scheme, training, and measurements of its
weights."""
