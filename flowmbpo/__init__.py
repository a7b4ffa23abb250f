"""Flow-matching world models and flow policies, trained by first-order gradients."""

__version__ = "0.2.0"
