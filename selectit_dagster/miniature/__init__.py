"""A miniature world in which the method can be seen to work, made by this project."""
