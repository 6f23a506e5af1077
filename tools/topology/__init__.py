"""The services of docker/compose.yaml as plain processes, for machines without a container engine.

``compose`` reads the compose file and the Dockerfile, ``processes`` starts what they say.
"""
