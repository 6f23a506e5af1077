"""A miniature world in which the method can be seen to work, made by this project.

`world` makes questions and answers of known quality, `build` the pools and the benchmark,
`pretrain` the two base models, and `judge` compares a selection with the known quality. No engine
knows of it: it enters through an experiment file, a data folder and a model folder like anybody's.
Its figures show that the machinery works; they say nothing about real models or data.
"""
