"""Statistics: pure functions of arrays that know neither torch nor files."""
