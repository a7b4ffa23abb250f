"""The actor's objective and its gradient in the real environment: what a model's gradient is measured against."""
