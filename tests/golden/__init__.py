"""Events as earlier versions wrote them. What is in the log today must be readable for ever."""
