"""Events: the vocabulary, the rules and the log. Imports nothing of the other rooms."""
