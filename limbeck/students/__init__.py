"""Where a student comes from: it exists already, it is the teacher with fewer layers, or it is new."""
