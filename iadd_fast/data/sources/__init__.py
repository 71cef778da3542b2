"""One reader per kind of source. Each gives a :class:`~iadd_fast.data.sources.part.Source`."""
