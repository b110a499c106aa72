"""The four other works: one module a chapter, with what its notebook does beside training and statistics."""
