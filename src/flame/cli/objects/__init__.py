"""How each kind of object is shown: columns of its list, page about one, document for programs."""
