"""A teacher that hears what the student sees: sounds as inputs, and pairs of images and sounds."""
