"""Compare criteria of structured pruning: which units can a network lose, and who knows best?"""

__version__ = "0.1.0"
